from .classifier import Classifier as Classifier
