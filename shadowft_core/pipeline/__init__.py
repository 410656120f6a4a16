"""What the flow in flows/ is made of. The only room that imports Prefect and DVC.

`run.Run` is what a flow uses: one run in one workspace. `command` is the command line around a flow, `server` the
Prefect server that it starts. The other modules are parts of these: the tasks (steps), the stages (dvc_stages,
stage_process, reproduce), what a person sees (display, clock, result).
"""
