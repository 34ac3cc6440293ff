"""Network models: how bytes on paths become arrival times."""
