"""StarDist: a model folder as StarDist saves it becomes a torch network, without TensorFlow.

Begin with `folder`, what lies in such a folder. `keras_weights` reads its weights, `network` builds the network of
`settings` from them.
"""
