"The papers' data sets, networks and tasks: `from latentreg_fastai.papers import *`"
from .data import *
from .networks import *
from .tasks import *
