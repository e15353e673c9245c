"""Online: the Ray Serve endpoint and the review page. Reserved floor; nothing is served yet."""
