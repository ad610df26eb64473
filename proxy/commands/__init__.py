"""The operator's commands over what is cached; each works beside a running server, and without one."""
