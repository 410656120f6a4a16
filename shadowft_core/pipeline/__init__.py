"""The parts of the flow in flows/. The only room that imports Prefect and DVC.

A flow uses `run.Run`: one run in one workspace. `command` is the command line around a flow, `server` the Prefect
server that it starts. The other modules are parts of these: the tasks (steps, inputs), the stages (dvc_stages,
stage_process, reproduce), and the display (display, clock, result).
"""
