"""Programs that use broker_worker the way you would."""
