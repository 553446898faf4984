"Terms, layers and labels of callbacks: what `LatentCallback`, `WeightedTerm` and `ClasswiseCallback` do for every penalty."
import pytest
from common import *

def test_a_layer_with_several_outputs():
    "The first tensor of what an LSTM returns is taken, and replaced"
    class Rnn(nn.Module):
        def __init__(self): super().__init__(); self.rnn,self.fc = nn.LSTM(8,5,batch_first=True),nn.Linear(5,3)
        def forward(self, x): return self.fc(self.rnn(x.squeeze(1))[0][:,-1])
    learn,mix,cb,seen = new_learner(model=Rnn()),ManifoldMixup(layers='rnn', input_mixup=False),VarianceRegularizer(layer='rnn', classwise=False),[]
    def look(l):
        z = l.model.rnn(l.x.squeeze(1))[0]
        seen.append((l.pred, l.model.fc(mixed(z, mix.lam, mix.shift)[:,-1]), cb.term, variance_penalty(z), variance_penalty(mixed(z, mix.lam, mix.shift))))
    learn.fit(1, cbs=[cb, mix, Probe(after_loss=look, run_valid=False)])
    assert len(seen) == 3
    for pred,of_mixed,term,plain_,mixed_ in seen: torch.testing.assert_close((pred,term), (of_mixed,mixed_), rtol=1e-4, atol=1e-6)

def test_a_layer_that_is_passed_twice():
    "Its penalty is the mean over the passes"
    class Siamese(nn.Module):
        def __init__(self): super().__init__(); self.enc,self.fc = nn.Sequential(nn.Flatten(), nn.Linear(64,5)),nn.Linear(5,3)
        def forward(self, x): return self.fc(self.enc(x) - self.enc(2*x))
    learn,want,got = new_learner(model=Siamese()),[],[]
    def look(l):
        with torch.no_grad(): want.append(torch.stack([variance_penalty(l.model.enc(k*l.x)) for k in (1,2)]).mean())
        got.append(cb.term)
    learn.fit(1, cbs=[cb := VarianceRegularizer(layer='enc', classwise=False), Probe(after_loss=look, run_valid=False)])
    torch.testing.assert_close(got, want); assert len(got) == 3

def test_a_penalty_without_a_penalty():
    class Nothing(LatentCallback): pass
    raises(['Nothing needs a method `penalty'], lambda: new_learner().fit(1, cbs=Nothing()), NotImplementedError)

# Labels from elsewhere: `labels=`, and the number of classes

def image_learner(cbs=None, labels_at=1, **kwargs):
    x,y = data()
    order = ((x,x,y),(x,y,x)) [labels_at != 1]
    ds = TensorItems(*order); ds.n_inp = 1
    dls = DataLoaders(TensorDL(ds, bs=8, shuffle=True), TensorDL(ds, bs=8), device='cpu')
    loss = (lambda p,a,b: F.mse_loss(p, a)) if labels_at == 1 else (lambda p,a,b: F.mse_loss(p, b))
    return new_learner(cbs, dls=dls, model=Autoencoder((1,8,8), (16,8,4,8,16)), loss_func=loss, metrics=[], **kwargs)

CLASSWISE = {'cw-VR': (VarianceRegularizer, lambda z,y: sum(z[y == k].var(0, unbiased=False).mean() for k in range(3) if (y == k).any())/3),
             'cw-CR': (CovarianceRegularizer, lambda z,y: sum(c.square()[torch.triu_indices(len(c), len(c), 1).unbind()].mean() for k in range(3) if (y == k).any() for c in [torch.cov(z[y == k].T, correction=0)])/3)}
@pytest.mark.parametrize('name', CLASSWISE)
@pytest.mark.parametrize('where', ['position','negative','function','first'])
def test_labels_of_an_autoencoder(name, where):
    "The penalty of the third layer, by class, with the labels that lie behind the image"
    cls,want = CLASSWISE[name]
    labels = {'position': 1, 'negative': -1, 'function': lambda learn: learn.yb[1], 'first': 0}[where]
    learn,seen = image_learner(labels_at=0 if where == 'first' else 1),[]
    cb = cls(1., layer='3', labels=labels, n_classes=3)
    def look(l):
        z = l.model.encode(l.x)
        y = l.yb[0 if where == 'first' else 1]
        close(cb.term.item(), want(z, y).item(), eps=1e-5); seen.append(l.loss.item())
        close(l.loss_grad.item(), l.loss.item() + cb.term.item(), eps=1e-5)
    learn.fit(2, 1e-3, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look)])
    assert len(seen) == 6

@pytest.mark.parametrize('make', [lambda **kw: ITRA(warmup=0., **kw), lambda **kw: ITRA(source='split', warmup=0., **kw), lambda **kw: ITRA(source='queue', warmup=0., **kw), lambda **kw: CenterLoss(**kw), lambda **kw: VarianceRegularizer(**kw)], ids=['ITRA','ITRA split','ITRA queue','CenterLoss','cw-VR'])
def test_labels_elsewhere_are_the_labels(make):
    "Labels as the second target train as the same labels as the first, with a loss that takes both"
    res = []
    x,y = data()
    for swap in (False,True):
        ds = TensorItems(x, *((x,y) if swap else (y,x))); ds.n_inp = 1
        dls = DataLoaders(TensorDL(ds, bs=8, shuffle=True), TensorDL(ds, bs=8), device='cpu')
        loss = (lambda p,a,b: F.cross_entropy(p, b)) if swap else (lambda p,a,b: F.cross_entropy(p, a))
        learn = new_learner(dls=dls, loss_func=loss, metrics=[])
        for dl in learn.dls.loaders: dl.rng.seed(3)
        learn.fit(2, 1e-2, cbs=make(n_classes=3, **({'labels': 1} if swap else {})))
        res.append(weights(learn))
    assert same(*res)

@pytest.mark.parametrize('labels,match,exc', [(2, ['labels=2', '2 targets', '0 to 1'], IndexError), (-3, ['labels=-3'], IndexError), (0, ['one integer label a sample', 'float32', '(8, 1, 8, 8)'], TypeError),
    (lambda l: l.yb[1][:5], ['rows for', 'labels'], ValueError), (lambda l: None, ['NoneType'], TypeError), (lambda l: l.yb[1].float(), ['float32'], TypeError)], ids=['beyond','below','image','few','none','floats'])
@pytest.mark.parametrize('cls', [VarianceRegularizer,CovarianceRegularizer,lambda *a, **k: ITRA(*a, warmup=0., **k)], ids=['VR','CR','ITRA'])
def test_labels_that_do_not_line_up(cls, labels, match, exc):
    learn = image_learner()
    before = weights(learn)
    cb = cls(1., layer='3', labels=labels, n_classes=3)
    raises([type(cb).__name__, *match], lambda: learn.fit(1, 1e-3, cbs=cb), exc)
    assert same(weights(learn), before) and not hooks(learn.model)

def test_labels_of_a_wrong_kind():
    for bad in ('y', 1.5, [0], True): raises(['VarianceRegularizer', '`labels`', repr(bad)], lambda: VarianceRegularizer(labels=bad), TypeError)
    raises(['VarianceRegularizer', 'number of classes', '`n_classes`'], lambda: image_learner().fit(1, cbs=VarianceRegularizer(layer='3', labels=1)))
    raises(['labels run from 0 to 2', '2 classes'], lambda: image_learner().fit(1, 1e-3, cbs=VarianceRegularizer(layer='3', labels=1, n_classes=2)))
    image_learner().fit(1, 1e-3, cbs=VarianceRegularizer(layer='3', classwise=False))      # without classes no labels are needed
