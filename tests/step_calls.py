"""How far a training step goes: the package's own calls in one step, and how often one file hands over to another.

    python tests/step_calls.py              # a table, a line for each callback and for each beside cw-VR
    python tests/step_calls.py ITRA         # and the way of one of them, file by file"""
import sys, warnings
warnings.simplefilter('ignore')
from pathlib import Path
from fastai.vision.all import *
import latentreg_fastai
from latentreg_fastai.all import *
from latentreg_fastai.papers import mlp

ROOT = Path(latentreg_fastai.__file__).parent
VR = lambda: VarianceRegularizer(1., n_classes=10)
CALLBACKS = {'cw-VR': VR, 'ManifoldMixup': ManifoldMixup, 'PhantomEmbedding': PhantomEmbedding, 'ITRA': lambda: ITRA(warmup=0., n_classes=10)}

class Way(Callback):
    "Notes every call of a function of the package in one training step, with its file"
    order,run_valid = -1000,False
    def __init__(self, step): self.step,self.calls = step,[]
    def note(self, frame, event, arg):
        code = frame.f_code
        if event == 'call' and code.co_filename.startswith(f'{ROOT}/'): self.calls.append((str(Path(code.co_filename).relative_to(ROOT)),getattr(code, 'co_qualname', code.co_name)))
    def before_batch(self):
        if self.train_iter == self.step: sys.setprofile(self.note)

class End(Callback):
    order,run_valid = 1000,False
    def after_batch(self): sys.setprofile(None)

def way(*cbs)->list: # File and function of each call, in order
    "The calls of the package in the fifth step of a fit"
    set_seed(0)
    x,y = torch.randn(600, 1, 28, 28),torch.randint(0, 10, (600,))
    learn = Learner(tensor_dls((x,y), (x,y), bs=100, device='cpu'), mlp(), loss_func=CrossEntropyLossFlat())
    notes = Way(4)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[notes, End(), *cbs])
    return notes.calls

def crossings(calls)->int:
    "How often a call is in another file than the one before it"
    return sum(a != b for (a,_),(b,_) in zip(calls, calls[1:]))

if __name__ == '__main__':
    for beside in ([], [VR]):
        for name,make in CALLBACKS.items():
            if beside and name == 'cw-VR': continue
            calls = way(make(), *[f() for f in beside])
            print(f"{name + ' beside cw-VR'*bool(beside):32}{len(calls):4} calls {crossings(calls):4} crossings")
            if sys.argv[1:] == [name] and not beside:
                for file,g in itertools.groupby(calls, key=lambda c: c[0]): print(f'    {file:24}', *(f.split('.<locals>.')[-1] for _,f in g))
