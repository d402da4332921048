import torchvision as torchvision

from nas_blockout.data import ArrayData as ArrayData
from nas_blockout.interactive.classifier import BlockoutClassifier as BlockoutClassifier
from nas_blockout.interactive.learned_network import LearnedNetwork as LearnedNetwork
from nas_blockout.interactive.learning import learn_structure as learn_structure
from services.python_api import Study as Study

__version__: str
