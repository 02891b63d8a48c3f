"""The deliverer of webhooks: a process of its own, so that no receiver ever holds up scoring."""
