"One import for users: `from latentreg_fastai.all import *`"
from .stats import *
from .core import *
from .data import *
from .models import *
from .callback.mixup import *
from .callback.moments import *
from .callback.phantom import *
from .callback.itra import *
from .callback.baselines import *
from .callback.varmixup import *
from .callback.semisup import *
from .callback.gan import *
from .callback.monitor import *
from .viz import *
from .metrics import *
from .robustness import *
from .interpret import *
