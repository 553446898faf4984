"Experiments as data: `latentreg bench`"
from .run import *
from .records import *
from .runner import *
from .suite import *
from .experiment import *
from .plan import *
from .report import *
from .cocktail import *
from .compare import *
from .files import *
from .speed import *
from ..cli import *
from ..help import document as _document
_document()
