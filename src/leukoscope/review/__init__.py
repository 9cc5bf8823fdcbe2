"""The second reader: a web application in which a laboratory reviews what a model said."""
