"""Worlds played in a browser: the server of `lwm play` and `lwm serve`, its page, its clients (extra `web`).

Two processes: this package's web process imports no torch; `engine_process` owns the models. See docs/play.md.
"""
