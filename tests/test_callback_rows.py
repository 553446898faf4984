"Rows beside those of the batch: models, loaders and targets of other kinds, with every callback that adds rows or compares classes."
import pytest
from common import *

MAKE = {'phantom': lambda **k: PhantomEmbedding(2, **k), 'phantom k=3': lambda **k: PhantomEmbedding(3, **k), 'phantom batch': lambda **k: PhantomEmbedding(2, source='batch', **k),
        'itra': lambda **k: ITRA(warmup=0., **k), 'itra separate': lambda **k: ITRA(warmup=0., separate=True, **k), 'itra split': lambda **k: ITRA(warmup=0., source='split', **k),
        'itra queue': lambda **k: ITRA(warmup=0., source='queue', **k), 'centre': lambda **k: CenterLoss(**k)}
each = pytest.mark.parametrize('name', MAKE)

def trained(learn, cb, n=2, cbs=()):
    "A fit changes all parameters that have a gradient, and gives finite terms; nothing is left"
    before = [p.clone() for p in learn.model.parameters()]
    sizes,moved = [],set()                                # at the end of a step fastai makes gradients 0
    grad = lambda l: moved.update(i for i,p in enumerate(l.model.parameters()) if p.grad is not None and p.grad.any())
    learn.fit(n, 1e-2, cbs=[cb, *cbs, Probe(run_valid=False, after_loss=lambda l: sizes.append((len(l.xb[0]), len(l.y))), after_backward=grad)])
    terms = learn.recorder.terms[cb.term_name]
    assert len(terms) == len(sizes) and all(map(math.isfinite, terms)) and max(terms) > 0 and not hooks(learn.model)
    assert all(a == b for a,b in sizes) and all(p.isfinite().all() for p in learn.model.parameters())
    assert moved == {i for i,(a,b) in enumerate(zip(before, learn.model.parameters())) if not torch.equal(a, b)} and len(moved) > 3
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

def test_the_hint_about_long_texts_helps():
    "A longer `seq_len` of the model, as the message says"
    lengths = [10*(1+5*i%6) for i in range(24)]
    said = raises(['PhantomEmbedding', 'SentenceEncoder', 'text_classifier_learner(dls, ..., seq_len='], lambda: text_learner(lengths, seq_len=10).fit(1, 1e-3, cbs=PhantomEmbedding()))
    text_learner(lengths, seq_len=max(lengths)).fit(1, 1e-3, cbs=PhantomEmbedding())
    assert int(re.search(r'seq_len=(\d+)', said)[1]) in lengths

LONG = [10*(1+5*i%6) for i in range(24)]   # lengths of texts, those of each batch of 8 from 10 to 60

def test_long_texts_are_mixed_behind_the_encoder():
    "By default at what leaves `SentenceEncoder`, row by row as computed here, whatever the order of the batches; and the warning says how to mix deeper"
    for shuffle in (True,False):
        learn,cb,seen = text_learner(LONG, seq_len=10, shuffle=shuffle),ManifoldMixup(),[]
        def check(l):
            with torch.no_grad(): outs,mask = l.model[0](l.x)
            pred = l.model[1]((cb.lam*outs + (1-cb.lam)*torch.cat([outs[-cb.shift:], outs[:-cb.shift]]), mask))[0]
            seen.append((str(cb.site), torch.allclose(pred, l.pred, atol=1e-4)))
        learn.remove_cbs([c for c in learn.cbs if c.name == 'rnn_regularizer'])
        with pytest.warns(UserWarning, match='only what leaves 0 is mixed.*seq_len=60'): learn.fit(2, 1e-3, cbs=[cb, Probe(run_valid=False, after_loss=check)])
        assert set(seen) == {('0',True)} and len(seen) == 6

WITHIN = {   # callbacks at a place within the encoder, and one that brings more texts
    'mixing': lambda: ManifoldMixup(layers='0.module.encoder_dp'), 'class-wise': lambda: VarianceRegularizer(layer='0.module.rnns.0'),
    'class-blind': lambda: VarianceRegularizer(layer='0.module.encoder_dp', classwise=False), 'centres': lambda: CenterLoss(layer='0.module.encoder_dp:input'),
    'phantom': lambda: PhantomEmbedding(layer='0.module.encoder_dp', source='batch'), 'monitor': lambda: LatentMonitor(layer='0.module.encoder_dp'),
    'semi-supervised': lambda: SemiSupervisedMixup([torch.randint(2, 30, (8,60))]*3, rampup=0)}

@pytest.mark.parametrize('name,lengths', [*[(k, LONG) for k in WITHIN], *[(k, [10]*8 + LONG) for k in ('mixing','class-wise','class-blind')]])
def test_places_within_the_encoder_of_long_texts_are_refused(name, lengths):
    "In the first batch that has them, whether it is the first of the fit or not"
    learn = text_learner(lengths, seq_len=10, shuffle=False)
    rest = sorted(range(len(lengths)-24, len(lengths)), key=lambda i: -lengths[i])
    learn.dls.train.get_idxs = lambda: [*range(len(lengths)-24), *rest[::3], *rest[1::3], *rest[2::3]]   # the short texts first, if there are any
    cb = WITHIN[name]()
    raises([type(cb).__name__, 'SentenceEncoder', 'bptt, 10', 'seq_len=60'], lambda: learn.fit(1, 1e-3, cbs=cb))

@pytest.mark.parametrize('dtype', [torch.uint8,torch.int8,torch.int16,torch.int32])
@each
def test_labels_of_any_integer_type(name, dtype):
    "`TabularPandas` gives int8. All that counts is which class it is: uint8 is no mask"
    y,res = data()[1],[]
    for d in (torch.int64,dtype):
        learn = new_learner(model=tanh_net(), dls=tensor_dls((data()[0],y.to(d)), (data()[0],y.to(d)), bs=8, device='cpu'), loss_func=lambda p,y: F.cross_entropy(p, y.long()))
        learn.fit(1, 1e-2, cbs=MAKE[name]())
        res.append(weights(learn))
    assert same(*res)

def test_frozen_bodies():
    "Only the head is trained, and nothing before it needs a gradient"
    for make in MAKE.values():
        learn = new_learner(model=tanh_net())
        for p in learn.model[1].parameters(): p.requires_grad_(False)
        before = learn.model[1].weight.clone()
        learn.fit(1, 1e-2, cbs=make())
        assert torch.equal(learn.model[1].weight, before) and learn.model[3].weight.grad is not None

# Others see the samples of the batch alone

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

# Beside what mixes or adds rows, and on loaders that group rows

@pytest.mark.parametrize('other', [MixUp, CutMix, ManifoldMixup, lambda: ITRA(warmup=0.), lambda: ITRA()], ids=['MixUp','CutMix','ManifoldMixup','ITRA','ITRA warm-up'])
@pytest.mark.parametrize('make', [PhantomEmbedding, partial(PhantomEmbedding, source='batch')], ids=['dataset','batch'])
def test_phantoms_beside_what_mixes_or_adds_rows(make, other):
    for flip in (False,True):
        cbs = [other(), make()]
        refused([type(cbs[0]).__name__, 'PhantomEmbedding', 'the batch too' if isinstance(cbs[0], ITRA) else 'would mix rows'], new_learner(), cbs[::-1] if flip else cbs)
    new_learner().fit(1, 1e-3, cbs=[ITRA(source='split', warmup=0.), make()])
    new_learner().fit(1, 1e-3, cbs=[MixUp(), make(k=1)])                                                  # off is off

def test_a_loader_that_draws_clusters_already():
    def clustered(k):
        dls = tensor_dls(data(), data(12), bs=8, device='cpu')
        dls.loaders[0] = MicroClusterDL(dls.train, k)
        return new_learner(dls=dls)
    refused(['PhantomEmbedding', 'clusters of 3', '`k` is 2'], clustered(3), PhantomEmbedding(2))
    clustered(3).fit(1, 1e-3, cbs=PhantomEmbedding(3))
    for kw in ({}, dict(matched=True), dict(separate=True)): refused(['ITRA', 'single samples', 'MicroClusterDL'], clustered(2), ITRA(warmup=0., **kw), TypeError)

def test_a_data_set_that_cannot_be_indexed():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(list(zip(*data())))
    for cb in (PhantomEmbedding(labels=data()[1]), ITRA(warmup=0.)):
        dls = DataLoaders(TfmdDL(Stream(), bs=8), TfmdDL(list(zip(*data())), bs=8), device='cpu')
        refused([type(cb).__name__, 'indexed', 'Stream'], new_learner(dls=dls), cb, TypeError)

# What an owner of rows can forget

class Masked(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Linear(4, 3)
    def forward(self, x, m=None): return self.fc(x if m is None else x*m)

def brings(f, weight=1.):
    class Mine(WeightedTerm):
        def companions(self):
            self.rows = BroughtRows(self, 'take one of the two', self.bring)
            return [self.rows]
        def bring(self): return f(self)
        def value(self): return F.mse_loss(self.rows.outputs, self.pred)
    return Mine(weight)

def masked_learner():
    ds = TensorItems(torch.randn(24, 4), torch.randn(24, 4), torch.arange(24) % 3, n_inp=2)
    return new_learner(model=Masked(), dls=DataLoaders(TensorDL(ds, bs=8, shuffle=True), TensorDL(ds, bs=8), device='cpu'))

@pytest.mark.parametrize('f,said', [(lambda cb: (cb.learn.xb[0],), ['shapes', '[(4,)]', '[(4,), (4,)]']), (lambda cb: cb.learn.xb[0], ['tuple', 'Tensor']), (lambda cb: None, ['tuple', 'NoneType']),
    (lambda cb: (cb.learn.xb[0][:,:2], cb.learn.xb[1]), ['shapes', '(2,)']), (lambda cb: (cb.learn.xb[0].long(), cb.learn.xb[1]), ['floating'])], ids=['one of two','a tensor','nothing','other width','integers'])
def test_what_cannot_stand_below_the_batch(f, said):
    raises(['Mine', *said], lambda: masked_learner().fit(1, 1e-3, cbs=brings(f)), (TypeError,ValueError))

def test_both_inputs_are_seen():
    learn,cb,seen = masked_learner(),brings(lambda cb: tuple(x + 1 for x in cb.learn.xb)),[]
    def by_hand(l):
        (x,m),(x2,m2) = l.xb,cb.rows.inputs
        seen.append(torch.allclose(l.pred, l.model.fc(x*m)) and torch.allclose(cb.rows.outputs, l.model.fc(x2*m2)))
    learn.fit(1, 1e-3, cbs=[cb, Probe(after_loss=by_hand, run_valid=False)])
    assert seen == [True]*3

def test_nothing_is_brought_at_weight_zero():
    "Even if the function does not ask for the weight"
    called = []
    sched = lambda pct: 0. if pct < .5 else 1.
    learn = new_learner()
    learn.fit(2, 1e-3, cbs=brings(lambda cb: called.append(cb.epoch) or (cb.x + 1,), weight=sched))
    assert called == [1]*3

def test_rows_within_the_model_at_weight_zero():
    class Mine(WeightedTerm):
        def companions(self):
            self.rows = InnerRows(self, 'take one of the two')
            return [self.rows]
        def begin(self):
            super().begin()
            self.watch(self.find_sites('2'), lambda site, z: torch.cat([z, z + 1]))
        def value(self): return F.mse_loss(self.rows.outputs, self.pred)
    cb = Mine(lambda pct: 0. if pct < .5 else 1.)
    learn = new_learner()
    learn.fit(2, 1e-3, cbs=cb)
    terms = learn.recorder.terms['mine_loss']
    assert all(map(math.isnan, terms[:3])) and min(terms[3:]) > 0

def test_a_loader_of_more_rows_that_is_none():
    class Mine(WeightedTerm):
        def companions(self):
            self.rows = LoadedRows(self, 'take one of the two', lambda dl: None)
            return [self.rows]
        def value(self): return self.rows.outputs.sum()
    raises(['Mine', 'GroupDL', 'None'], lambda: new_learner().fit(1, 1e-3, cbs=Mine()), TypeError)
