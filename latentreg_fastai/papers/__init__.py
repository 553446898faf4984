"The papers' data sets, networks and tasks: `from latentreg_fastai.papers import *`"
from . import data,networks,tasks
from .data import *
from .networks import *
from .tasks import *
__all__ = data.__all__ + networks.__all__ + tasks.__all__   # without it `import *` would bring the names of the modules too
from ..help import document as _document
_document()
