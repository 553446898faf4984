"Experiments as data: `latentreg bench`"
from .run import *
from .records import *
from .runner import *
from .experiment import *
from .suite import *
from .report import *
from .speed import *
from ..cli import *
