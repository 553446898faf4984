"Experiments as data: `latentreg bench`"
from .run import *
from .suite import *
from .report import *
from .cli import *
