"ITRA against the paper's equations worked by hand: the two batches, their discrepancy, the warm-up and the queue."
import pytest
from latentreg_fastai.bench import Suite, one_run
from common import *

def discrepancy(z1, z2, s, squared=False):
    k = lambda a,b: (-(a[:,None]-b).square().sum(-1)/s).exp().mean()
    v = k(z1, z1) + k(z2, z2) - 2*k(z1, z2)
    return v if squared else v.clamp_min(1e-20).sqrt()

def itra_by_hand(z1, y1, z2, y2, classwise, s, squared):
    z1,z2 = z1.flatten(1),z2.flatten(1)
    if s is None:
        z = torch.cat([z1,z2]).detach()
        s = torch.pdist(z).square().median()
    if not classwise: return discrepancy(z1, z2, s, squared)
    terms = [discrepancy(z1[y1==c], z2[y2==c], s, squared) for c in range(3) if (y1==c).any() and (y2==c).any()]
    return sum(terms, z1.sum()*0)/3

ITRAS = {'default': {}, 'whole': dict(classwise=False), 'sigma': dict(sigma=5.), 'squared': dict(squared=True), 'feature map': dict(layer='0'), 'whole, sigma': dict(classwise=False, sigma=9., squared=True)}
@pytest.mark.parametrize('kw', ITRAS)
@pytest.mark.parametrize('how', ['dataset','matched','separate','split','queue'])
def test_itra_by_hand(how, kw):
    kw = ITRAS[kw]
    cb = ITRA(1.7, source=how if how in ('split','queue') else 'dataset', warmup=0., queue_len=2, **kw, **({how: True} if how in ('matched','separate') else {}))
    at,earlier = 1 if 'layer' in kw else 5,[]
    def check(l, x, y):
        m,n = copy_of(l),len(l.y)
        full = lambda x: ((z := m[:at](x)), m[at:](z))
        if how in ('split','queue'): assert len(y) == n == 8
        else: assert len(y) == 16 and (x[:8] == l.x).all() and (y[:8] == l.y).all()
        if how == 'matched': assert y[:8].sort()[0].tolist() == y[8:].sort()[0].tolist()
        if how == 'separate':
            z1,out = full(x[:8]); z2,_ = full(x[8:]); two = z1,y[:8],z2,y[8:]         # a pass and statistics of its own for each
        else:
            z,out = full(x)
            if how == 'split': two = z[:4],y[:4],z[4:],y[4:]
            elif how == 'queue': two = (z,y,torch.cat([a for a,_ in earlier[-2:]]),torch.cat([b for _,b in earlier[-2:]])) if earlier else None
            else: two = z[:8],y[:8],z[8:],y[8:]
        term = itra_by_hand(*two, cb.classwise, cb.sigma, cb.squared) if two else out.sum()*0
        as_by_hand(l, F.cross_entropy(out[:n], l.y) + 1.7*term, m)
        if how == 'queue': earlier.append((z.detach(),y))
        for (k,a),b in zip(l.model.named_buffers(), m.buffers()): torch.testing.assert_close(a, b)   # running statistics too
    cbs,calls = step(check)
    learn = new_learner(model=bn_net())
    learn.fit(2, 1e-2, cbs=[cb,*cbs])
    assert len(calls) == 6 and all(map(math.isfinite, learn.recorder.terms['itra_c_loss' if cb.classwise else 'itra_loss']))

@pytest.mark.parametrize('source', ['dataset','split','queue'])
def test_warmup(source):
    "Until then it is the baseline, and nothing is loaded or computed"
    cb,rows = ITRA(2., source=source, warmup=.5),[]
    learn,base = new_learner(),new_learner()
    cut = lambda l: rows.append(len(l.y))
    saved = []
    keep = lambda l: saved.append([p.clone() for p in l.model.parameters()])
    base.fit(2, 1e-2, cbs=Probe(after_train=keep))
    set_seed(0); learn = new_learner()
    learn.fit(2, 1e-2, cbs=[cb, Probe(order=-9, run_valid=False, before_batch=cut), Probe(after_train=keep)])
    assert rows == [8]*3 + [16 if source == 'dataset' else 8]*3
    assert all(torch.equal(*p) for p in zip(saved[0], saved[2])) and not all(torch.equal(*p) for p in zip(saved[1], saved[3]))
    assert [math.isnan(t) for t in learn.recorder.terms['itra_c_loss']] == [True]*3 + [False]*3

def test_warmup_that_ends_within_an_epoch():
    cb,rows = ITRA(warmup=.5),[]
    new_learner().fit(1, 1e-2, cbs=[cb, Probe(order=-9, run_valid=False, before_batch=lambda l: rows.append(len(l.y)))])
    assert rows == [8,8,16]                                                           # at shares 0, ⅓ and ⅔

def test_a_schedule_of_the_weight():
    cb,seen = ITRA(SchedLin(0.,3.), warmup=0., classwise=False),[]
    look = lambda l: cb.term is not None and seen.append(((l.loss_grad-l.loss).item()/cb.term.item(), 3*l.pct_train))
    new_learner().fit(2, 1e-2, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look)])
    close(*zip(*seen), eps=1e-4); assert len(seen) == 5

def test_the_queue():
    "Holds the features of the last steps, from before each step"
    cb,learn = ITRA(source='queue', queue_len=3, warmup=0.),new_learner(model=tanh_net())
    lens,zs,ys = [],[],[]
    def seen(l):
        lens.append(len(cb._queue)); zs.append(l.model[:-1](l.x).detach()); ys.append(l.y.clone())
    def look(l):
        assert len(cb._queue) == min(3, len(zs))
        for (fine,z,y),z0,y0 in zip(cb._queue, zs[-3:], ys[-3:], strict=True):
            assert fine.item() is True and not z.requires_grad and z.grad_fn is None
            torch.testing.assert_close(z, z0); assert torch.equal(y, y0)
    learn.fit(2, 1e-2, cbs=[cb, Probe(order=5, run_valid=False, after_loss=seen), Probe(run_valid=False, after_batch=look)])
    assert lens == [0,1,2,3,3,3] and learn.recorder.terms['itra_c_loss'][0] == 0 and min(learn.recorder.terms['itra_c_loss'][1:]) > 0
    learn.fit(1, 1e-2, cbs=cb)
    assert learn.recorder.terms['itra_c_loss'][0] == 0                                     # a new fit begins with an empty queue

# It does not collapse

@pytest.mark.grid('seed', range(5), every=2)
def test_itra_does_not_collapse(seed):
    "1,000 MNIST images, the MLP without normalisation, Adam 1e-3, weight 0.6, five seeds, in CI three: no run is above its baseline + 2 points; without a warm-up it is a guess"
    spec = Suite.load('itra-collapse').spec
    suite = Suite({**spec, 'base': {**spec['base'], 'data_args': dict(n_train=1000, n_valid=2000), 'points': 1, 'last': 1}, 'rows': {'ITRA-c': {}, 'none': spec['rows']['none']}})
    errors = {r.get('label', r['method']): one_run(r)['error'] for r in suite.test_runs(suite.choose_lrs([]), {}) if r['seed'] == seed and (seed == 0 or r.get('label') != 'none')}
    assert errors['ITRA-c'] < errors['baseline'] + 2, errors
    assert seed or errors['none'] > 80

# Input that cannot do

REFUSED = [
    *[(partial(c, w), [c.__name__, '`weight`', '0 or more', repr(w)]) for c in (ITRA,) for w in (-1, NAN, math.inf, 'strong', None)],
    *[(partial(ITRA, warmup=w), ['ITRA', '`warmup`', 'below 1', repr(w)]) for w in (1, 1., -.1, NAN, 'x', None)],
    *[(partial(ITRA, sigma=s), ['ITRA', '`sigma`', 'above 0', repr(s)]) for s in (0, -1., NAN, 'median')],
    *[(partial(ITRA, queue_len=n), ['ITRA', '`queue_len`', 'above 0', repr(n)]) for n in (0, -1, 1.5, None)],
    *[(partial(ITRA, source=s), ['ITRA', '`source`', "'dataset', 'split' or 'queue'", repr(s)]) for s in ('datset', 'batch', None)],
    *[(partial(ITRA, source=s, **{k: True}), ['ITRA', f'`{k}=True`', "source='dataset'"]) for k in ('separate','matched') for s in ('split','queue')],
    *[(partial(c, n_classes=n), [c.__name__, '`n_classes`', 'above 0', repr(n)]) for c in (ITRA,) for n in (0, -1, 2.5, 'three')],
]

@pytest.mark.parametrize('make,match', REFUSED, ids=lambda o: f'{o.func.__name__}{o.args}{o.keywords}' if isinstance(o, partial) else '')
def test_arguments(make, match): raises(match, make)
