"""The interface between the web application and the predictors: requests, answers, schemas, problems, settings.

Begin with `predictors` and `schemas`.
"""
