"""How much more memory a training step needs with each method: the peak of what all tensors hold in a step, relative to a step without a callback

    python nbs/results/memory.py

Tensors are counted as PyTorch makes and frees them, on the networks and batches of `latentreg speed`, so the figures are the same on every machine
and whatever else it does. Weights, the optimizer's state and the batch are counted; what a library holds beside tensors is not."""
import weakref
from latentreg_fastai.bench.records import *
from latentreg_fastai.bench.run import *
from latentreg_fastai.bench.speed import speed_settings
from latentreg_fastai.callback.monitor import *
from latentreg_fastai.data.load import *
from latentreg_fastai.vae import *
from fastai.vision.all import *
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

class Tally(TorchDispatchMode):
    "Counts the bytes of all tensors that were made since it began and are still held"
    def __init__(self):
        super().__init__()
        self.now,self.peak,self.held = 0,0,{}
    def add(self, t):
        s = t.untyped_storage()
        if (key := s._cdata) in self.held: return
        self.held[key] = s.nbytes()
        self.now += s.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(s, self.drop, key)
    def drop(self, key): self.now -= self.held.pop(key, 0)
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor): self.add(t)
        return out

def peak(setting, make, needs, steps=6):
    "The most bytes held in the last steps of a short fit; the first ones look for the places"
    set_seed(0)
    dl,model = setting()
    needed = dict(vae=lambda: MMDVAE(*dl.one_batch()[0].shape[1:3]), unlabeled=lambda: dl.new())
    given = {k: needed[k]() for k in needs}
    cbs,loss = callbacks_and_loss(make(**given))
    for cb in cbs:
        if getattr(cb, 'warmup', 0): cb.warmup = 0.          # ITRA waits in these first steps
    learn = Learner(DataLoaders(dl, dl), model, loss_func=loss or CrossEntropyLossFlat())
    tally = Tally()
    for m in (model, given.get('vae')):
        for p in m.parameters() if m else (): tally.add(p.data)
    def before(self):
        if self.iter == 3: tally.peak = tally.now
    def stop(self):
        if self.iter == steps: raise CancelFitException
    with tally, learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=[*cbs, Callback(before_batch=before, after_batch=stop)])
    return tally.peak

def rows():
    known = {n: find_method(n, 'memory') for n in methods}
    left_out = 'DropoutRate','ITRA-c remedy'              # for networks with dropout; of a study
    known = {n: m for n,m in known.items() if m.make is not None and m.suits('classification') and n not in left_out}
    return {'baseline': (Method(),()), **{n: (partial(m, **m.timed), m.needs) for n,m in known.items()},
            'LatentMonitor': (partial(LatentMonitor, 5),())}

if __name__ == '__main__':
    out = Path(__file__).with_suffix('.jsonl')
    out.unlink(missing_ok=True)
    for name in ('MLP, batch 100, TensorDL','ResNet-20, batch 128'):
        base = None
        for label,row in rows().items():
            mb = peak(speed_settings()[name], *row)/2**20
            base = base or mb
            write_record(out, dict(setting=name, method=label, mb=round(mb, 3), ratio=round(mb/base, 4)))
            print(name, label, round(mb, 2), round(mb/base, 3), flush=True)
