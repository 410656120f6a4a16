"""What the flows are made of. The only room that imports Prefect and DVC."""
