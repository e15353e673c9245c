"""What the web application and the predictors agree on: requests, answers, schemas, problems, settings.

Begin with `predictors` and `schemas`.
"""
