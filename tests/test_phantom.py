"Phantom embeddings against the paper's equations worked by hand."
import pytest
from common import *

def members(cb, x, y, k):
    "The inputs of each cluster, (N, k, ...), and the labels of all"
    if cb.source == 'dataset': return x.view(-1, k, *x.shape[1:]),y.view(-1, k)
    c = batch_clusters(y, cb._order, k)
    return x[c],y[c]

@pytest.mark.parametrize('net', [linear_net,tanh_net])
@pytest.mark.parametrize('source', ['dataset','batch'])
@pytest.mark.parametrize('k', [2,3,4])
def test_the_loss_is_equation_3(k, source, net):
    cb,shares = PhantomEmbedding(k, alpha=.7, source=source),[]
    def check(l, x, y):
        m,(xs,ys) = copy_of(l),members(cb, x, y, k)
        assert xs.shape[:2] == (8,k) and (ys == ys[:,:1]).all() and (xs[:,0] == l.x).all() and (ys[:,0] == l.y).all()
        z = torch.stack([m[:-1](xs[:,j]) for j in range(k)])                          # φ of every member
        main,phantom = F.cross_entropy(m[-1](z[0]), l.y),F.cross_entropy(m[-1](sum(z)/k), l.y)
        as_by_hand(l, cb.share*main + (1-cb.share)*phantom, m)
        torch.testing.assert_close(l.loss.detach().as_subclass(Tensor), main.detach()) # what is shown is the loss of the samples
        torch.testing.assert_close(cb.term, phantom.detach())
        shares.append(cb.share)
    cbs,_ = step(check)
    new_learner(model=net()).fit(2, 1e-2, cbs=[cb,*cbs])
    assert len(set(shares)) == 6 and all(0 <= a <= 1 for a in shares)

@pytest.mark.parametrize('source', ['dataset','batch'])
@pytest.mark.parametrize('k', [2,3])
def test_naive_is_equation_2(k, source):
    cb = PhantomEmbedding(k, source=source, naive=True)
    def check(l, x, y):
        m,(xs,ys) = copy_of(l),members(cb, x, y, k)
        as_by_hand(l, F.cross_entropy(m[-1](torch.stack([m[:-1](xs[:,j]) for j in range(k)], 1).mean(1)), ys[:,0]), m)
    cbs,calls = step(check)
    new_learner(model=tanh_net()).fit(2, 1e-2, cbs=[cb,*cbs])
    assert len(calls) == 6

@pytest.mark.parametrize('kw', [{}, dict(source='batch'), dict(naive=True), dict(aggregate=lambda c: c.amax(1)), dict(labels=[1,2])])
def test_one_sample_a_cluster_is_the_baseline(kw):
    res = []
    for cbs in (None, PhantomEmbedding(1, **kw)):
        learn = new_learner()
        learn.fit_one_cycle(2, 1e-2, cbs=cbs)
        res.append((weights(learn), [l.item() for l in learn.recorder.losses], random_state()))
    assert same(res[0][0], res[1][0]) and res[0][1:] == res[1][1:]

def test_alpha_is_that_of_the_beta_distribution_of_the_share():
    from scipy.stats import beta, kstest
    cb,shares = PhantomEmbedding(alpha=.5, source='batch'),[]
    new_learner(model=linear_net(), dls=tensor_dls(data(1600), data(12), bs=4, device='cpu')).fit(1, 1e-4, cbs=[cb, Probe(run_valid=False, after_loss=lambda l: shares.append(cb.share))])
    assert len(shares) == 400 and kstest(shares, beta(.5, .5).cdf).pvalue > .01

@pytest.mark.parametrize('layer,shape', [('0',(4,4,4)), ('1',(64,)), ('2',(8,)), (None,(8,))], ids=str)
@pytest.mark.parametrize('source', ['dataset','batch'])
def test_an_aggregate_gets_the_clusters(source, layer, shape):
    "Of features of any shape; what it returns is the phantom"
    shapes = []
    def largest(c): shapes.append(tuple(c.shape)); return c.amax(1)
    cb = PhantomEmbedding(3, layer=layer, source=source, aggregate=largest)
    at = {'0':1, '1':2, '2':3, None:5}[layer]
    def check(l, x, y):
        m,(xs,ys) = copy_of(l),members(cb, x, y, 3)
        if source == 'batch': z = m[:at](x); z0,c = z,z[batch_clusters(y, cb._order, 3)]
        else: z = m[:at](torch.cat([xs[:,0], xs[:,1:].flatten(0,1)])); z0,c = z[:8],torch.stack([z[:8], z[8::2], z[9::2]], 1)
        out = m[at:](torch.cat([z0, c.max(1).values]))                                # batch normalisation sees both
        as_by_hand(l, cb.share*F.cross_entropy(out[:8], l.y) + (1-cb.share)*F.cross_entropy(out[8:], l.y), m)
    cbs,calls = step(check)
    learn = new_learner(model=bn_net())
    learn.fit(2, 1e-2, cbs=[cb,*cbs])
    assert len(calls) == 6 and set(shapes) == {(8,3,*shape)}

def test_the_layer_may_be_the_last():
    cb = PhantomEmbedding(2, layer='3')                                               # phantoms of outputs
    def check(l, x, y):
        m = copy_of(l); out = m(x).view(8,2,3)
        as_by_hand(l, cb.share*F.cross_entropy(out[:,0], l.y) + (1-cb.share)*F.cross_entropy(out.mean(1), l.y), m)
    cbs,calls = step(check)
    new_learner(model=tanh_net()).fit(1, 1e-2, cbs=[cb,*cbs])
    assert len(calls) == 3

@pytest.mark.parametrize('source', ['dataset','batch'])
def test_other_callbacks_features_are_those_of_the_samples(source):
    "A penalty beside phantoms takes the main samples"
    cb,reg = PhantomEmbedding(2, source=source),VarianceRegularizer(3., layer='2')
    def check(l, x, y):
        m,(xs,ys) = copy_of(l),members(cb, x, y, 2)
        z = m[:-1](xs.flatten(0,1)).view(8,2,8)
        loss = cb.share*F.cross_entropy(m[-1](z[:,0]), l.y) + (1-cb.share)*F.cross_entropy(m[-1](z.mean(1)), l.y)
        as_by_hand(l, loss + 3*classwise_variance_penalty(z[:,0], l.y, 3), m)
    cbs,calls = step(check)
    new_learner(model=tanh_net()).fit(1, 1e-2, cbs=[cb,reg,*cbs])
    assert len(calls) == 3

# Input that cannot do

REFUSED = [
    *[(partial(PhantomEmbedding, k), ['PhantomEmbedding', '`k`', 'above 0', repr(k)]) for k in (0, -1, 1.5, 'two', None)],
    *[(partial(PhantomEmbedding, alpha=a), ['PhantomEmbedding', '`alpha`', 'above 0', repr(a)]) for a in (0, -1., NAN, math.inf, 'a', None)],
    *[(partial(PhantomEmbedding, source=s), ['PhantomEmbedding', '`source`', "'dataset' or 'batch'", repr(s)]) for s in ('datset', 'queue', None)],
    *[(partial(PhantomEmbedding, aggregate=a), ['PhantomEmbedding', '`aggregate`', "'mean' or a function", repr(a)]) for a in ('men', 3, None)],
]

@pytest.mark.parametrize('make,match', REFUSED, ids=lambda o: f'{o.func.__name__}{o.args}{o.keywords}' if isinstance(o, partial) else '')
def test_arguments(make, match): raises(match, make)

@pytest.mark.parametrize('dls', [lambda: None, lambda: items_dls(Silent())], ids=['tensors','items'])
def test_labels_that_are_not_the_targets(dls):
    refused(['PhantomEmbedding', 'more than one class', '`labels=`'], new_learner(dls=dls()), PhantomEmbedding(labels=data()[1].roll(1)//2), trained=True)
    new_learner(dls=dls()).fit(1, 1e-3, cbs=PhantomEmbedding(labels=(data()[1]+1)%3 + 7))                      # other names for the same classes

class Residual(nn.Module):
    def __init__(self): super().__init__(); self.stem,self.branch,self.head = nn.Sequential(nn.Flatten(), nn.Linear(64,8)),nn.Linear(8,8),nn.Linear(8,3)
    def forward(self, x): h = self.stem(x); return self.head(h + self.branch(h))

sources = pytest.mark.parametrize('make', [PhantomEmbedding, partial(PhantomEmbedding, source='batch')], ids=['dataset','batch'])

@pytest.mark.parametrize('bs', [8,1])
@pytest.mark.parametrize('k', [2,3])
@sources
def test_a_layer_beside_which_signal_passes(make, k, bs):
    "k=2 is the dangerous one: as many rows leave the layer as come in, and phantoms would be added to partners"
    dls = tensor_dls(data(), data(12), bs=bs, device='cpu')
    refused(['PhantomEmbedding', 'branch', 'all of the signal'], new_learner(model=Residual(), dls=dls), make(k, layer='branch'))
    for ok in ('stem','branch:input','head','head:input'):
        if ok != 'branch:input': new_learner(model=Residual(), dls=dls).fit(1, 1e-3, cbs=make(k, layer=ok))

SHAPES = {'(N,k,I)': lambda c: c, '(N,k)': lambda c: c.mean(2), '(I,)': lambda c: c.mean((0,1)), '(N-1,I)': lambda c: c.mean(1)[:-1], '(k,I)': lambda c: c.mean(0),
          'a number': lambda c: 3., 'None': lambda c: None}
@pytest.mark.parametrize('shape', SHAPES)
@sources
def test_aggregate_of_a_wrong_shape(make, shape): refused(['PhantomEmbedding', '`aggregate`', '(8, 3, 8)'], new_learner(), make(3, aggregate=SHAPES[shape]))
