"Phantom embeddings and ITRA, and what they are compared with, against the papers' equations worked by hand."
import pytest
from common import *

def mlp(): set_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Tanh(), nn.Linear(8,3))
def linear(): set_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Linear(8,3))
def bn_net(): set_seed(0); return nn.Sequential(ConvLayer(1, 4, stride=2), nn.Flatten(), nn.Linear(64,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8,3))   # no dropout: nothing is drawn

def step(check):
    """Callbacks that call `check(learn, x, y)` in each training batch once the gradients are there; x and y are all rows the loader gave.
    `copy_of(learn)` is then the network as it was before its forward pass."""
    rows,calls = {},[]
    def fit(l): object.__setattr__(l, 'twin', deepcopy(l.model))                      # before there are hooks
    def before(l): rows.update(x=l.x.clone(), y=l.y.clone()); object.__setattr__(l, 'was', weights(l))
    def after(l): check(l, rows['x'], rows['y']); calls.append(1)
    return [Probe(order=-9, run_valid=False, before_fit=fit, before_batch=before), Probe(order=20, run_valid=False, after_backward=after)],calls

def as_by_hand(l, loss, model):
    "`loss`, computed with the copy `model`, is what was differentiated, and its gradients are those of the network"
    torch.testing.assert_close(l.loss_grad.detach().as_subclass(Tensor), loss.detach(), rtol=1e-5, atol=1e-6)
    for p,g in zip(l.model.parameters(), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)):
        torch.testing.assert_close(p.grad, torch.zeros_like(p) if g is None else g, rtol=1e-4, atol=1e-6)

def copy_of(l):
    m = deepcopy(l.twin)
    m.load_state_dict(l.was)
    return m.train()

# Phantom embeddings

def members(cb, x, y, k):
    "The inputs of each cluster, (N, k, ...), and the labels of all"
    if cb.source == 'dataset': return x.view(-1, k, *x.shape[1:]),y.view(-1, k)
    c = batch_clusters(y, cb._order, k)
    return x[c],y[c]

@pytest.mark.parametrize('net', [linear,mlp])
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
    new_learner(model=mlp()).fit(2, 1e-2, cbs=[cb,*cbs])
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
    new_learner(model=linear(), dls=tensor_dls(data(1600), data(12), bs=4, device='cpu')).fit(1, 1e-4, cbs=[cb, Probe(run_valid=False, after_loss=lambda l: shares.append(cb.share))])
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
    new_learner(model=mlp()).fit(1, 1e-2, cbs=[cb,*cbs])
    assert len(calls) == 3

@pytest.mark.parametrize('make', [lambda: PhantomEmbedding(3), lambda: PhantomEmbedding(2, source='batch'), lambda: ITRA(warmup=0.), lambda: ITRA(warmup=0., separate=True)], ids=['phantom','batch','itra','separate'])
def test_others_see_the_samples_of_the_batch_only(make):
    "Prediction, batch, loss and metrics, in training too"
    seen,count = [],[]
    def look(l):
        if not l.training: return
        seen.append((len(l.pred), len(l.x), len(l.y)))
        count.append((l.pred.argmax(1) == l.y).float().mean().item())
        close(l.loss.item(), F.cross_entropy(l.pred, l.y).item(), eps=1e-6)
    learn = new_learner(model=bn_net())
    learn.recorder.train_metrics = True
    learn.fit(2, 1e-2, cbs=[make(), Probe(after_loss=look)])
    assert set(seen) == {(8,8,8)} and len(seen) == 6
    names = learn.recorder.metric_names
    assert names[1:5] == ['train_loss','train_accuracy','valid_loss','valid_accuracy']
    close([v[1] for v in learn.recorder.values], [np.mean(count[:3]), np.mean(count[3:])], eps=1e-6)

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
    new_learner(model=mlp()).fit(1, 1e-2, cbs=[cb,reg,*cbs])
    assert len(calls) == 3

# ITRA

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
    assert len(calls) == 6 and all(map(math.isfinite, learn.recorder.terms['itra_c' if cb.classwise else 'itra']))

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
    assert [math.isnan(t) for t in learn.recorder.terms['itra_c']] == [True]*3 + [False]*3

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
    cb,learn = ITRA(source='queue', queue_len=3, warmup=0.),new_learner(model=mlp())
    lens,zs = [],[]
    def look(l):
        lens.append(len(cb._queue)); zs.append(l.model[:-1](l.x).detach())
        for (z,y),want in zip(cb._queue, zs[-3:]):
            assert not z.requires_grad and z.grad_fn is None and z.shape == (8,8) and y.shape == (8,)
    def same_features(l): torch.testing.assert_close(cb._queue[-1][0], zs[-1]); assert torch.equal(cb._queue[-1][1], l.y)
    learn.fit(2, 1e-2, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look), Probe(order=6, run_valid=False, after_loss=same_features)])
    assert lens == [1,2,3,3,3,3] and learn.recorder.terms['itra_c'][0] == 0 and min(learn.recorder.terms['itra_c'][1:]) > 0
    learn.fit(1, 1e-2, cbs=cb)
    assert learn.recorder.terms['itra_c'][0] == 0                                     # a new fit begins with an empty queue

@pytest.mark.parametrize('make,is_set', [(lambda: ITRA(source='queue', warmup=0.), lambda cb: len(cb._queue)), (lambda: CenterLoss(), lambda cb: cb.centers is not None)], ids=['queue','centres'])
def test_state(make, is_set, tmp_path):
    "Goes through a file, and the next fit goes on from it"
    a,b,learn = make(),make(),new_learner()
    learn.fit(1, 1e-2, cbs=a)
    torch.save(a.state_dict(), tmp_path/'s.pth')
    b.load_state_dict(torch.load(tmp_path/'s.pth'))                                   # only tensors and containers: no pickle is needed
    assert is_set(b)
    learn.fit(1, 1e-2, cbs=b)
    term = learn.recorder.terms[b.term_name][0]
    assert is_set(b) and term > 0
    learn.fit(1, 1e-2, cbs=(c := make()))
    assert learn.recorder.terms[c.term_name][0] != term

# Models and loaders of other kinds

MAKE = {'phantom': lambda **k: PhantomEmbedding(2, **k), 'phantom k=3': lambda **k: PhantomEmbedding(3, **k), 'phantom batch': lambda **k: PhantomEmbedding(2, source='batch', **k),
        'itra': lambda **k: ITRA(warmup=0., **k), 'itra separate': lambda **k: ITRA(warmup=0., separate=True, **k), 'itra split': lambda **k: ITRA(warmup=0., source='split', **k),
        'itra queue': lambda **k: ITRA(warmup=0., source='queue', **k), 'centre': lambda **k: CenterLoss(**k)}
each = pytest.mark.parametrize('name', MAKE)

def trained(learn, cb, n=2, cbs=()):
    "A fit changes all parameters and gives finite terms; nothing is left"
    before = [p.clone() for p in learn.model.parameters()]
    sizes = []
    learn.fit(n, 1e-2, cbs=[cb, *cbs, Probe(run_valid=False, after_loss=lambda l: sizes.append((len(l.xb[0]), len(l.y))))])
    terms = learn.recorder.terms[cb.term_name]
    assert len(terms) == len(sizes) and all(map(math.isfinite, terms)) and max(terms) > 0 and not hooks(learn.model)
    assert all(a == b for a,b in sizes) and all(p.isfinite().all() for p in learn.model.parameters())
    assert not any(torch.equal(*p) for p in zip(before, learn.model.parameters()) if p[1].grad is not None and p[1].grad.abs().sum() > 0)
    return learn

class Tuple(nn.Module):
    "Returns what else it knows beside its prediction: a list, a dictionary, a number"
    def __init__(self): super().__init__(); self.body,self.head = nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Tanh()),nn.Linear(8,3)
    def forward(self, x): z = self.body(x); return self.head(z),[z],{'z': z},3,None

@each
def test_models_that_return_tuples(name):
    shapes = []
    look = Probe(run_valid=False, after_loss=lambda l: shapes.append((tuple(l.pred[0].shape), tuple(l.pred[1][0].shape), l.pred[3:])))
    res = []
    for model,loss in ((Tuple(), lambda p,y: F.cross_entropy(p[0], y)), (None, CrossEntropyLossFlat())):
        set_seed(5)
        model = Tuple() if model is not None else nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Tanh()), nn.Linear(8,3))
        learn = new_learner(model=model, loss_func=loss, metrics=[])
        trained(learn, MAKE[name](), cbs=[look] if isinstance(model, Tuple) else [])
        res.append([p.detach() for p in learn.model.parameters()])
    assert set(shapes) == {((8,3),(8,8),(3,None))}
    for a,b in zip(*res): torch.testing.assert_close(a, b)                            # as the model that returns only its prediction

class TwoInputs(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b,self.head = nn.Linear(5,4),nn.Embedding(9,4),nn.Linear(8,3)
    def forward(self, a, b): return self.head(torch.cat([self.a(a), self.b(b).mean(1)], 1).tanh())

@each
def test_two_inputs(name):
    "Rows stay together, whatever they are made of"
    set_seed(0)
    y = data()[1]
    items = TensorItems(torch.randn(24,5), torch.randint(0, 9, (24,3)), y, vocab=range(3))
    learn = new_learner(model=TwoInputs(), dls=tensor_dls(items, items, bs=8, device='cpu'))
    paired = Probe(run_valid=False, order=5, after_loss=lambda l: torch.testing.assert_close(l.pred.detach(), l.model(*[t.clone() for t in l.xb]).detach()))
    trained(learn, MAKE[name](), cbs=[paired])

def test_phantoms_of_two_inputs_by_hand():
    set_seed(0)
    cb,rows = PhantomEmbedding(3),{}
    items = TensorItems(torch.randn(24,5), torch.randint(0, 9, (24,3)), data()[1], vocab=range(3))
    learn = new_learner(model=TwoInputs(), dls=tensor_dls(items, items, bs=8, device='cpu'))
    def check(l):
        m,(a,b) = l.model,rows['x']
        z = torch.cat([m.a(a), m.b(b).mean(1)], 1).tanh().view(8,3,8)
        close(l.loss_grad.item(), (cb.share*F.cross_entropy(m.head(z[:,0]), l.y) + (1-cb.share)*F.cross_entropy(m.head(z.mean(1)), l.y)).item(), eps=1e-5)
    learn.fit(1, 1e-2, cbs=[cb, Probe(order=-9, run_valid=False, before_batch=lambda l: rows.update(x=l.xb)), Probe(order=5, run_valid=False, after_loss=check)])
    assert len(rows['x'][0]) == 24

@each
def test_tabular(name):
    from fastai.tabular.all import TabularPandas, Categorify, Normalize, tabular_learner
    set_seed(0)
    df = pd.DataFrame({'a': np.random.randn(96), 'b': np.random.randn(96), 'cat': np.random.choice(list('pqr'), 96), 'y': np.random.choice(['u','v','w'], 96)})
    dls = TabularPandas(df, [Categorify, Normalize], cat_names='cat', cont_names=['a','b'], y_names='y', y_block=CategoryBlock(), splits=(list(range(72)), list(range(72,96)))).dataloaders(bs=16, val_bs=24)
    learn = tabular_learner(dls, layers=[8,6], metrics=accuracy)
    learn.remove_cb(ProgressCallback); learn.logger = noop
    trained(learn, MAKE[name]())

TEXT = dict(emb_sz=6, n_hid=7, n_layers=2, pad_token=1, bidir=False, output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=1e-9)   # as good as no dropout; fastai's weight dropout cannot do 0

def text_learner(lengths, seq_len=72, shuffle=True):
    "fastai's text classifier: integers of differing length, a prediction that is one of a tuple, a hidden state"
    from fastai.text.all import AWD_LSTM, SortedDL, TensorText, get_text_classifier, pad_input_chunk, rnn_cbs
    set_seed(0)
    items = [(TensorText(torch.randint(2, 30, (n,))), TensorCategory(i%3)) for i,n in enumerate(lengths)]
    dl = lambda **kw: SortedDL(items, bs=8, before_batch=partial(pad_input_chunk, pad_idx=1, seq_len=seq_len), device='cpu', **kw)
    model = get_text_classifier(AWD_LSTM, 30, 3, seq_len=seq_len, config=TEXT, drop_mult=1., ps=[0.])
    return new_learner(model=model, dls=DataLoaders(dl(shuffle=shuffle, drop_last=True), dl()), cbs=rnn_cbs(alpha=2., beta=1.), metrics=accuracy)

@each
def test_text(name):
    learn = text_learner([5+7*i%13 for i in range(24)])
    shapes = []
    trained(learn, MAKE[name](), cbs=[Probe(run_valid=False, after_loss=lambda l: shapes.append(tuple(l.pred.shape)))])
    assert set(shapes) == {(8,3)} and math.isfinite(learn.recorder.values[-1][1])

@pytest.mark.parametrize('name', ['phantom','phantom k=3','itra','itra separate'])
def test_long_texts(name):
    "fastai's `SentenceEncoder` takes the first rows of a batch for the longest where texts are longer than `seq_len`: what is added must not break that"
    learn,seen = text_learner([10*(1+5*i%6) for i in range(24)], seq_len=10, shuffle=False),[]
    for m in learn.model.modules():
        if isinstance(m, nn.BatchNorm1d): m.momentum = 0.; m.eval = m.train = lambda *a, m=m: object.__setattr__(m, 'training', False) or m   # rows do not see each other
    def check(l):
        for x,p in zip(l.x.as_subclass(Tensor), l.pred.detach()):
            while (x[:10] == 1).all(): x = x[10:]                                     # chunks of padding, which stand first
            seen.append((l.model(x[None])[0][0].detach() - p).abs().max().item())
    learn.remove_cbs([c for c in learn.cbs if c.name == 'rnn_regularizer'])
    learn.fit(1, 0., cbs=[Probe(run_valid=False, order=5, after_loss=check)])
    assert max(seen) < 1e-5 and len(seen) == 24                                       # each row's prediction is that of its text alone
    seen.clear()
    try: learn.fit(1, 0., cbs=[MAKE[name](), Probe(run_valid=False, order=5, after_loss=check)])
    except ValueError as e: assert 'SentenceEncoder' in str(e) and 'source=' in str(e); return   # to refuse is as good
    assert max(seen) < 1e-5 and len(seen) == 24

@pytest.mark.parametrize('dtype', [torch.uint8,torch.int8,torch.int16,torch.int32,torch.int64])
@each
def test_labels_of_any_integer_type(name, dtype):
    "`TabularPandas` gives int8. All that counts is which class it is: uint8 is no mask"
    y,res = data()[1],[]
    for d in (torch.int64,dtype):
        learn = new_learner(model=mlp(), dls=tensor_dls((data()[0],y.to(d)), (data()[0],y.to(d)), bs=8, device='cpu'), loss_func=lambda p,y: F.cross_entropy(p, y.long()))
        learn.fit(1, 1e-2, cbs=MAKE[name]())
        res.append(weights(learn))
    assert same(*res)

def test_frozen_bodies():
    "Only the head is trained, and nothing before it needs a gradient"
    for make in MAKE.values():
        learn = new_learner(model=mlp())
        for p in learn.model[1].parameters(): p.requires_grad_(False)
        before = learn.model[1].weight.clone()
        learn.fit(1, 1e-2, cbs=make())
        assert torch.equal(learn.model[1].weight, before) and learn.model[3].weight.grad is not None

@each
def test_lr_find_and_what_follows(name):
    "The suggestion is made with the callback, and leaves no trace in the fit after it"
    res = []
    for find in (False,True):
        learn = new_learner(cbs=MAKE[name]())
        if find:
            with tempfile.TemporaryDirectory() as d:
                learn.path = Path(d)
                assert 1e-7 < learn.lr_find(num_it=12, show_plot=False).valley < 10
        restart(learn).fit_one_cycle(2, 1e-2)
        res.append(weights(learn))
    assert same(*res)

@each
def test_gradient_accumulation(name):
    "Two batches a step: the gradient is the mean of both"
    learn,parts,got = new_learner(model=mlp(), dls=tensor_dls(data(32), data(12), bs=8, device='cpu')),[],[]
    params = list(learn.model.parameters())
    part = lambda l: parts.append(torch.autograd.grad(l.loss_grad, params, retain_graph=True))
    learn.fit(1, 1e-2, cbs=[MAKE[name](), GradientAccumulation(n_acc=16), Probe(order=5, run_valid=False, after_loss=part),
                            Probe(order=6.5, run_valid=False, before_step=lambda l: got.append([p.grad.clone() for p in params]))])
    assert len(parts) == 4 and len(got) == 2
    for i,gs in enumerate(got):
        for g,a,b in zip(gs, parts[2*i], parts[2*i+1]): torch.testing.assert_close(g, (a+b)/2, rtol=1e-4, atol=1e-6)

# What they are compared with

@pytest.mark.parametrize('layer,at', [(None,3), ('1',2)], ids=str)
@pytest.mark.parametrize('lr', [.5,1.,.1])
def test_centres_follow_as_in_their_paper(lr, layer, at):
    "Wen et al., Eqs. 2 to 4, sample by sample"
    cb,c,terms = CenterLoss(.3, lr, layer=layer),torch.zeros(3, 8),[]
    def check(l, x, y):
        m = copy_of(l); z = m[:at](x)
        pull = sum((z[i] - c[y[i]].clone()).square().sum() for i in range(8))/8/2
        as_by_hand(l, F.cross_entropy(m(x), y) + .3*pull, m)
        terms.append(pull.item())
        for k in range(3):
            delta,n = torch.zeros(8),0
            for i in range(8):
                if y[i] == k: delta += c[k] - z[i].detach(); n += 1
            c[k] -= lr*delta/(1 + n)
        torch.testing.assert_close(cb.centers, c); assert not cb.centers.requires_grad
    cbs,_ = step(check)
    learn = new_learner(model=mlp())
    learn.fit(3, 1e-2, cbs=[cb,*cbs])
    close(learn.recorder.terms['center'], terms, eps=1e-5)
    assert len(terms) == 9 and learn.recorder.metric_names[4] == 'center'

def test_centres_of_absent_classes_stay():
    x,y = data()
    cb = CenterLoss(n_classes=7)
    new_learner(model=mlp(), dls=tensor_dls((x,y*2), (x,y*2), bs=8, vocab=range(5), device='cpu'), loss_func=lambda p,y: F.cross_entropy(p, y//2), metrics=[]).fit(1, 1e-2, cbs=cb)
    assert cb.centers.shape == (7,8) and (cb.centers != 0).any(1).tolist() == [True,False,True,False,True,False,False]

@pytest.mark.parametrize('p,K', [(.1,10), (.5,3), (1.,4), (.3,2)])
def test_labels_are_disturbed_at_the_rate_and_evenly(p, K):
    "p·(K−1)/K of the labels change: a label may be drawn again. Whatever a label was, the new one is any other alike"
    from scipy.stats import binomtest, chisquare
    set_seed(0)
    y = torch.arange(6000)%K
    dls = tensor_dls((torch.randn(6000,2),y), (torch.randn(50,2),y[:50]), bs=500, device='cpu')
    old,new = [],[]
    learn = new_learner(model=nn.Linear(2,K), dls=dls)
    def after(l):
        new.append(l.y.clone())
        close(l.loss.item(), F.cross_entropy(l.pred, l.y).item(), eps=1e-6)
    learn.fit(4, 1e-3, cbs=[DisturbLabel(p), Probe(order=-9, run_valid=False, before_batch=lambda l: old.append(l.y.clone())), Probe(run_valid=False, after_loss=after)])
    old,new = torch.cat(old).as_subclass(Tensor),torch.cat(new).as_subclass(Tensor)
    changed = old != new
    assert len(old) == 24_000 and binomtest(changed.sum().item(), len(old), p*(K-1)/K).pvalue > 1e-3
    if K == 2: return
    for k in range(K):
        mine = new[changed & (old == k)].bincount(minlength=K)
        assert mine[k] == 0 and chisquare(np.delete(mine.numpy(), k)).pvalue > 1e-4

def test_disturbed_labels_are_drawn_anew_each_epoch_and_leave_the_data():
    x,y = data()
    seen = []
    learn = new_learner(dls=tensor_dls((x,y.clone()), (x,y), bs=24, device='cpu'))
    learn.dls.train.shuffle = False
    learn.fit(3, 1e-3, cbs=[DisturbLabel(.5), Probe(run_valid=False, after_loss=lambda l: seen.append(l.y.tolist()))])
    assert len(set(map(tuple, seen))) == 3 and torch.equal(learn.dls.train_ds.tensors[1], y)

@pytest.mark.parametrize('layer,names', [(None, ['0.0.weight','2.weight','5.weight']), ('2',['2.weight']), (nn.Linear,['2.weight','5.weight']), ('0*',['0.0.weight']), (-1,['5.weight'])], ids=str)
def test_l1_of_weights(layer, names):
    cb,sums = WeightL1(1e-3, layer),[]
    def check(l, x, y):
        m = copy_of(l)
        l1 = sum(p.abs().sum() for n,p in m.named_parameters() if n in names)
        sums.append(l1.item())
        as_by_hand(l, F.cross_entropy(m(x), y) + 1e-3*l1, m)
    cbs,_ = step(check)
    learn = new_learner(model=bn_net())
    learn.fit(2, 1e-2, cbs=[cb,*cbs])
    close(learn.recorder.terms['weight_l1'], sums, eps=1e-2)

def test_l1_counts_shared_weights_once_and_frozen_ones_not():
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Linear(8,8), nn.Tanh(), nn.Linear(8,8), nn.Linear(8,3))
    model[4].weight = model[2].weight
    model[1].weight.requires_grad_(False)
    cb,sums,term = WeightL1(1e-3),[],[]
    look = lambda l: (sums.append((model[2].weight.abs().sum() + model[5].weight.abs().sum()).item()), term.append(cb.term.item()))
    new_learner(model=model).fit(1, 1e-2, cbs=[cb, Probe(order=5, run_valid=False, after_loss=look)])
    close(term, sums, eps=1e-3)
    with pytest.raises(ValueError, match='has no weights'): new_learner(model=model).fit(1, cbs=WeightL1(layer='1'))

def test_centres_are_exported_with_the_learner(tmp_path):
    learn = new_learner(cbs=CenterLoss(), path=tmp_path)
    learn.fit(1, 1e-2)
    learn.export('m.pkl')
    loaded = first(cb for cb in load_learner(tmp_path/'m.pkl').cbs if isinstance(cb, CenterLoss))
    assert torch.equal(loaded.centers, learn.center_loss.centers) and loaded.centers.shape == (3,8)
