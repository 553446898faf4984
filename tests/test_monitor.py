"`LatentMonitor`: what is watched of a network while it is trained, against loops by hand; training is the same."
import pytest
from fastai.callback.mixup import CutMix, MixUp
from common import *

pytestmark = pytest.mark.usefixtures('no_figures')

def slow_distance(z1, y1, z2, y2, normalize=True):
    pairs = [((a-b).norm().item(),bool(k == l)) for a,k in zip(z1, y1) for b,l in zip(z2, y2)]
    near = [d for d,s in pairs if s]
    return np.mean(near)/(np.mean([d for d,_ in pairs]) if normalize else 1) if near else math.nan

def slow_variance(z, y, K): return sum(z[y == k].double().var(0, unbiased=False).sum().item() for k in y.unique())/(K*z.shape[1])

@pytest.mark.parametrize('dtype', [torch.float32,torch.float64])
@pytest.mark.parametrize('far,near', [(1e3,1e-2), (1e6,1.), (1e20,1e17), (1e-18,1e-20), (1e18,1e18)], ids=str)
def test_distance_in_tight_clusters_far_apart(dtype, far, near):
    g = torch.Generator().manual_seed(0)
    center,y = torch.randn(3, 8, generator=g, dtype=torch.float64)*far,torch.arange(12)%3
    z1,z2 = ((center[y] + near*torch.randn(12, 8, generator=g, dtype=torch.float64)).to(dtype) for _ in range(2))
    for normalize in (True,False):
        want = slow_distance(z1.double(), y, z2.double(), y, normalize)
        assert math.isclose(pair_distance(z1, y, z2, y, normalize), want, rel_tol=1e-5)
    assert pair_distance(z1, y, z1[:3], y[:3], False) < 12*near and pair_distance(z1[:3], y[:3], z1[:3], y[:3], False) == 0
    z1[1,1] = math.nan
    assert pair_distance(z1, y, z2, y).isnan()

class ByHand(Callback):
    "What a `LatentMonitor` should record: the batches as the loader gave them, through a copy of the network as it is after the step"
    order,run_valid = -9,False
    def __init__(self, every=1, main=lambda t: t, at=slice(-1), normalize=True, K=3): self.every,self.main,self.at,self.normal,self.K,self.rows = every,main,at,normalize,K,[]
    def before_fit(self): self.plain = deepcopy(self.learn.model)
    def before_train(self): self.old = None
    def before_batch(self): self.now = self.main(self.x.clone().as_subclass(Tensor)),self.main(self.y.clone().as_subclass(Tensor)); self.rows.append([math.nan]*2)
    def after_step(self):
        if self.old and (self.train_iter+1)%self.every == 0:
            m = deepcopy(self.plain); m.load_state_dict(self.learn.model.state_dict()); m.eval()
            with torch.no_grad(): (z1,y1),(z2,y2) = ((m[self.at](x).flatten(1),y.view(-1)) for x,y in (self.old,self.now))
            self.rows[-1] = [slow_distance(z1, y1, z2, y2, self.normal),slow_variance(z2, y2, self.K)]
    def after_batch(self): self.old = self.now

def as_recorded(learn, hand):
    got = np.array([learn.recorder.terms[k] for k in ('pair_distance_loss','cw_variance_loss')]).T
    assert got.shape == np.array(hand.rows).shape; np.testing.assert_allclose(got, hand.rows, rtol=2e-4, atol=1e-6)
    return np.isfinite(got).all(1).nonzero()[0].tolist()

@pytest.mark.parametrize('kw,hand', [({}, {}), (dict(normalize=False), dict(normalize=False)), (dict(layer='0'), dict(at=slice(1))), (dict(layer=nn.Linear), dict(at=slice(None))), (dict(layer='4:input'), dict(at=slice(4))), (dict(n_classes=5), dict(K=5))], ids=plain)
@pytest.mark.parametrize('every,at', [(1,[1,2,3,5,6,7]), (3,[2,5]), (2,[1,3,5,7]), (4,[3,7])])
def test_monitor_by_hand(every, at, kw, hand):
    learn,hand = new_learner(dls=tensor_dls(data(36), data(12), bs=8, device='cpu')),ByHand(every, **hand)
    learn.fit(2, 1e-2, cbs=[LatentMonitor(every, **kw),hand])
    assert as_recorded(learn, hand) == at
    assert learn.recorder.metric_names == ['epoch','train_loss','valid_loss','accuracy','pair_distance_loss','cw_variance_loss','time'] and not hooks(learn.model)
    for e,v in enumerate(learn.recorder.values): close(v[3:], np.nanmean(hand.rows[4*e:4*e+4], axis=0), eps=1e-3)

@pytest.mark.parametrize('every,at', [(4,[7,11,19]), (10,[19])])
def test_every_counts_through_the_fit(every, at):
    "Not within an epoch, which may have fewer steps; the first batch of an epoch has none before it"
    learn,hand = new_learner(),ByHand(every)                                          # 3 steps an epoch
    learn.fit(7, 1e-2, cbs=[LatentMonitor(every),hand])
    assert as_recorded(learn, hand) == at

def test_an_epoch_of_one_batch_is_refused():
    learn = new_learner(dls=tensor_dls(data(), data(12), bs=24, device='cpu'))
    with pytest.raises(ValueError, match='LatentMonitor: an epoch has one batch'): learn.fit(1, 1e-2, cbs=LatentMonitor(1))
    assert not hooks(learn.model)

main_first,main_even = lambda t: t[:8],lambda t: t[::2]
BESIDE = {'ManifoldMixup': (lambda: ManifoldMixup(), None), 'input mixup': (lambda: ManifoldMixup(layers=[]), None), 'MixUp': (lambda: MixUp(.4), None), 'CutMix': (lambda: CutMix(), None), 'Phantom': (lambda: PhantomEmbedding(2), main_even), 'Phantom k=3': (lambda: PhantomEmbedding(3), lambda t: t[::3]),
          'Phantom batch': (lambda: PhantomEmbedding(2, source='batch'), None), 'ITRA': (lambda: ITRA(warmup=0.), main_first), 'ITRA separate': (lambda: ITRA(warmup=0., separate=True), main_first), 'ITRA matched': (lambda: ITRA(warmup=0., matched=True), main_first),
          'ITRA warm-up': (lambda: ITRA(warmup=.5), main_first), 'ITRA split': (lambda: ITRA(warmup=0., source='split'), None), 'ITRA queue': (lambda: ITRA(warmup=0., source='queue'), None), 'DisturbLabel': (lambda: DisturbLabel(.9), None), 'cw-VR': (lambda: VarianceRegularizer(5.), None)}

@pytest.mark.parametrize('cast', [True,False], ids=['','without CastToTensor'])
@pytest.mark.parametrize('first', [True,False], ids=['before','after'])
@pytest.mark.parametrize('name', BESIDE)
def test_monitor_beside_others(name, first, cast):
    "It sees the samples of the batch as the loader gave them, and their own labels: CutMix changes inputs in place; without `CastToTensor` others could take a pass of the monitor for that of training"
    make,main = BESIDE[name]
    learn,hand = new_learner(dls=tensor_dls(data(36), data(12), bs=8, device='cpu')),ByHand(main=main or noop)
    if not cast: learn.remove_cb(CastToTensor)
    learn.fit(2, 1e-2, cbs=[LatentMonitor(1),make(),hand] if first else [make(),LatentMonitor(1),hand])
    assert as_recorded(learn, hand) == [1,2,3,5,6,7] and not hooks(learn.model)

@pytest.mark.parametrize('name', [*OF_A_NET,'MixUp','CutMix','none'])
def test_a_watched_run_is_the_same(name):
    "Bit by bit: weights, losses, validation, gradients, random states; with dropout and batch normalisation"
    make = CALLBACKS[name][0] if name in CALLBACKS else {'MixUp': MixUp, 'CutMix': CutMix, 'none': lambda: []}[name]
    res = []
    for watch in ([],[LatentMonitor(1)],[LatentMonitor(3, layer='0', normalize=False)]):
        learn,gs = new_learner(),[]
        learn.fit_one_cycle(2, 1e-2, cbs=[*L(make()),*watch,Probe(run_valid=False, after_backward=lambda l: gs.append([p.grad.tolist() for p in l.model.parameters()]))])
        names = [n for n in learn.recorder.metric_names if n not in ('pair_distance_loss','cw_variance_loss','pair_distance_loss_2','cw_variance_loss_2')]
        res.append((weights(learn), [float(l) for l in learn.recorder.losses], [v[:3] for v in learn.recorder.values], random_state(), gs, names, [m.training for m in learn.model.modules()], [dl.rng.getstate() for dl in learn.dls.loaders]))
    for other in res[1:]: assert same(res[0][0], other[0]) and res[0][1:] == other[1:]

class AlwaysDrops(nn.Module):
    def forward(self, x): return F.dropout(x, .2)                                     # `training` is True by default: a common slip, and Monte Carlo dropout

def test_a_model_that_draws_in_evaluation_mode_is_watched_alike():
    res = []
    for watch in ([],[LatentMonitor(1)]):
        set_seed(0); learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,8), AlwaysDrops(), nn.Linear(8,3)))
        learn.fit(2, 1e-2, cbs=watch)
        res.append((weights(learn), random_state()))
    assert same(res[0][0], res[1][0]) and res[0][1] == res[1][1]

def test_monitor_under_gradient_accumulation():
    "Measured where a step is taken, from the batch and the one before"
    learn,hand = new_learner(dls=tensor_dls(data(52), data(12), bs=8, device='cpu')),ByHand()
    learn.fit(2, 1e-2, cbs=[LatentMonitor(1),GradientAccumulation(16),hand])
    assert as_recorded(learn, hand) == [1,3,5,7,9,11]

def test_accumulated_training_is_the_same():
    res = []
    for watch in ([],[LatentMonitor(1)]):
        learn = new_learner()
        learn.fit(2, 1e-2, cbs=[GradientAccumulation(16),*watch]); res.append(weights(learn))
    assert same(*res)

def labelled(y, vy=None, **kwargs):
    "A learner whose labels are given, in batches of 8 in the order of the data"
    learn = new_learner(dls=tensor_dls((data(len(y))[0],y), (data(12)[0],torch.arange(12)%3 if vy is None else vy), bs=8, device='cpu'), **kwargs)
    learn.dls.train.shuffle = False
    return learn

def test_no_class_in_both_batches():
    "The distance is `nan`, the variance is not"
    learn = labelled(tensor([0]*8+[1,2]*4+[2]*8+[2]*8))
    learn.fit(1, 1e-2, cbs=(hand := ByHand()) and [LatentMonitor(1),hand])
    as_recorded(learn, hand)
    assert finite(learn, 'pair_distance_loss')[0].tolist() == [2,3] and finite(learn, 'cw_variance_loss')[0].tolist() == [1,2,3]
    z,y = torch.randn(4,3),torch.arange(4)
    assert math.isnan(pair_distance(z, y, z, y+4)) and math.isnan(pair_distance(z, y, z, y+4, normalize=False)) and pair_distance(z, y, z, y) < 1e-2
    close(learn.recorder.plot_latent()[1].lines[0].get_xdata(), [2,3])

def test_the_tables_mean_leaves_nan_out():
    learn = labelled(tensor([0]*8+[1,2]*4+[2]*8+[2]*8))
    learn.fit(1, 1e-2, cbs=LatentMonitor(1))
    assert learn.recorder.values[0][3] == pytest.approx(np.mean(finite(learn, 'pair_distance_loss')[1]))
    learn = labelled(tensor([0]*8+[1]*8+[2]*8))
    learn.fit(1, 1e-2, cbs=LatentMonitor(1))
    assert math.isnan(learn.recorder.values[0][3]) and learn.recorder.values[0][4] > 0

@pytest.mark.parametrize('shape,dtype', [((-1,),torch.uint8), ((-1,1),torch.int64), ((-1,1),torch.int8)], ids=plain)
def test_pair_distance_by_hand(shape, dtype):
    g = torch.Generator().manual_seed(0)
    z1,z2,y1,y2 = torch.randn(7,2,3, generator=g),torch.randn(9,2,3, generator=g),(torch.arange(7)%3).to(dtype),(torch.arange(9)%4).to(dtype)
    for n in (True,False): assert pair_distance(z1, y1.view(shape), z2, y2.view(shape), n).item() == pytest.approx(slow_distance(z1, y1, z2, y2, n), rel=1e-5)
    assert pair_distance(5*z1, y1, 5*z2, y2).item() == pytest.approx(pair_distance(z1, y1, z2, y2).item(), rel=1e-5)

def test_monitor_takes_labels_of_any_shape():
    res = []
    for f in (noop, lambda y: y[:,None], lambda y: y.to(torch.int8)):
        learn = labelled(f(data()[1]), f(torch.arange(12)%3), loss_func=lambda p,y: F.cross_entropy(p, y.view(-1).long()), metrics=[])
        learn.fit(1, 1e-2, cbs=LatentMonitor(1, n_classes=3)); res.append(learn.recorder.terms['pair_distance_loss'][1:] + learn.recorder.terms['cw_variance_loss'][1:])
    assert res[0] == res[1] == res[2] and all(map(math.isfinite, res[0]))

def test_classes_are_counted_by_the_output_where_no_one_tells():
    learn,hand = new_learner(dls=DataLoaders(*(TfmdDL(list(zip(*data(n))), bs=8, shuffle=n > 12, num_workers=0) for n in (24,12)))),ByHand(K=3)
    assert getattr(learn.dls, 'c', None) is None
    learn.fit(1, 1e-2, cbs=[LatentMonitor(1),hand])
    assert as_recorded(learn, hand) == [1,2]

class Unreached(nn.Module):
    def __init__(self): super().__init__(); self.body,self.never,self.doubled,self.out = nn.Flatten(),nn.Linear(2,2),nn.Identity(),nn.Linear(64,3)
    def forward(self, x): z = self.body(x); self.doubled(torch.cat([z,z])); return self.out(z)

@pytest.mark.parametrize('kw', [dict(every=0), dict(every=-1), dict(every=1.5), dict(every='1'), dict(every=None), dict(n_classes=0), dict(n_classes=2.)], ids=plain)
def test_monitor_refuses_at_once(kw):
    with pytest.raises(ValueError, match=f'LatentMonitor: `{first(kw)}` must be a whole number.* above 0, not'): LatentMonitor(**kw)

@pytest.mark.parametrize('kw,error', [(dict(layer='never'),"layer='never': the forward pass never reached never"), (dict(layer='doubled'),'doubled gives 16 rows for 8 labels'), (dict(layer='nowhere'),"layer='nowhere': there is no layer"), (dict(n_classes=2),'`n_classes` is 2, but the data has 3 classes')], ids=plain)
def test_monitor_refuses_in_a_fit(kw, error):
    learn = new_learner(model=Unreached())
    with pytest.raises(ValueError, match=f'LatentMonitor: {error}'): learn.fit(1, 1e-2, cbs=LatentMonitor(1, **kw))
    assert not hooks(learn.model) and not learn._grab_cbs(TermCallback)
    learn.fit(1, 1e-2, cbs=LatentMonitor(1))                                          # and the learner is as good as new

def test_monitor_refuses_targets_that_are_no_labels():
    learn = new_learner(dls=tensor_dls((data()[0],torch.randn(24,3)), (data()[0],torch.randn(24,3)), bs=8, device='cpu'), loss_func=MSELossFlat(), metrics=[])
    with pytest.raises(TypeError, match=r'LatentMonitor: watching classes needs one integer label a sample, shape \(N,\), and got float32 targets of shape \(8, 3\)'): learn.fit(1, cbs=LatentMonitor(1))
    assert not hooks(learn.model)

@pytest.mark.parametrize('where', ['forward','look'])
@pytest.mark.parametrize('error', [KeyboardInterrupt,RuntimeError])
def test_nothing_is_left_after_an_error(where, error):
    "In the training pass, or in a pass of its own"
    class Fails(nn.Module):
        n = 0
        def forward(self, x):
            if self.training == (where == 'forward'): self.n += 1
            if self.n == (3 if where == 'forward' else 2): self.n = 99; raise error('stop')
            return x
    learn = new_learner(model=nn.Sequential(Fails(), *net()))
    with pytest.raises(error, match='stop'): learn.fit(2, 1e-2, cbs=LatentMonitor(1))
    assert not hooks(learn.model) and all(m.training for m in learn.model.modules()) and 'latent_monitor' not in [c.name for c in learn.cbs] and not learn._grab_cbs(TermCallback)
    learn.fit(1, 1e-2, cbs=LatentMonitor(1))
    assert finite(learn, 'cw_variance_loss')[0].tolist() == [1,2]

def test_two_monitors_and_their_leave():
    a,b = LatentMonitor(1),LatentMonitor(2, layer='0')
    learn = new_learner(cbs=[a,b])
    learn.fit(1, 1e-2)
    assert list(learn.recorder.terms) == ['pair_distance_loss','cw_variance_loss','pair_distance_loss_2','cw_variance_loss_2'] and len(learn.validate()) == 2
    assert finite(learn, 'cw_variance_loss')[0].tolist() == [1,2] and finite(learn, 'cw_variance_loss_2')[0].tolist() == [1]
    assert a._before is a._now is None                                                # no batch is held on to
    learn.remove_cbs([a,b])
    assert not learn._grab_cbs(TermCallback) and not [c for c in learn.cbs if 'measure' in c.name]
    learn.fit(1, 1e-2)
    assert learn.recorder.metric_names == ['epoch','train_loss','valid_loss','accuracy','time']

def test_a_monitor_is_exported(tmp_path):
    learn = new_learner(cbs=LatentMonitor(1), path=tmp_path)
    learn.fit(1, 1e-2)
    learn.export('m.pkl')
    assert 'latent_monitor' in [c.name for c in load_learner(tmp_path/'m.pkl').cbs]

# Samples without a label, numbers, and what models return

@pytest.mark.parametrize('ignored', [-100,7,1])
@pytest.mark.parametrize('normalize', [True,False])
def test_samples_without_a_label_are_left_out(ignored, normalize):
    x,y = data(36)
    y = torch.where(torch.arange(36)%4 == 0, ignored, y); x[y == ignored] += 50           # far away
    class Kept(ByHand):
        def before_batch(self):
            super().before_batch()
            self.now = [t[self.now[1] != ignored] for t in self.now]
    learn,hand = new_learner(dls=tensor_dls((x,y), data(12), vocab=range(3), bs=8, device='cpu'), loss_func=CrossEntropyLossFlat(ignore_index=ignored), metrics=[]),Kept(normalize=normalize)
    learn.fit(2, 1e-2, cbs=[LatentMonitor(1, normalize=normalize),hand])
    assert len(as_recorded(learn, hand)) == 6

@pytest.mark.parametrize('shape', [(-1,),(-1,1)])
def test_pair_distance_without_labels(shape):
    g = torch.Generator().manual_seed(0)
    z1,z2,y1,y2 = torch.randn(9, 5, generator=g),torch.randn(11, 5, generator=g),torch.arange(9)%3,torch.arange(11)%4
    y1[::3],y2[1::4] = -100,-100
    for n in (True,False):
        want = slow_distance(z1[y1 >= 0], y1[y1 >= 0], z2[y2 >= 0], y2[y2 >= 0], n)
        assert pair_distance(z1, y1.view(shape), z2, y2.view(shape), n).item() == pytest.approx(want, rel=1e-5)
        assert pair_distance(z1, y1 - 5*(y1 < 0), z2, y2 - 5*(y2 < 0), n, ignore_index=-105).item() == pytest.approx(want, rel=1e-5)

@pytest.mark.parametrize('loss', [MSELossFlat, L1LossFlat, nn.HuberLoss, lambda: F.mse_loss])
def test_integers_that_are_no_classes_are_refused(loss):
    y = torch.arange(24)%5
    inner = loss()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    if not isinstance(inner, BaseLoss): inner = BaseLoss(type(inner), is_2d=False, floatify=True) if isinstance(inner, nn.Module) else partial(inner)
    learn = new_learner(model=model, dls=tensor_dls((data()[0],y), (data()[0],y), bs=8, device='cpu'), loss_func=inner, metrics=[])
    with pytest.raises(TypeError, match='LatentMonitor: watching classes needs one integer label a sample, and the targets are numbers'): learn.fit(1, cbs=LatentMonitor(1))
    assert not hooks(model) and not learn._grab_cbs(TermCallback)

class Gives(nn.Module):
    def __init__(self, f): super().__init__(); self.net,self.f = nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,3)),f
    def forward(self, x): return self.f(self.net(x['x'] if isinstance(x, dict) else x))
def model_output(z):
    from transformers.modeling_outputs import SequenceClassifierOutput
    return SequenceClassifierOutput(loss=z.sum(), logits=z)
GIVES = {'tensor': lambda z: z, 'tuple': lambda z: (z,z), 'list': lambda z: ['a',z], 'dict': lambda z: {'loss': z.sum(), 'logits': z}, 'ModelOutput': model_output}
def terms_of(f, x=lambda x: x, y=lambda y: y, loss=None, **kwargs):
    set_seed(0)
    items = [(x(a),y(b)) for a,b in zip(*data())]
    own = lambda o, t: F.cross_entropy(next(v for v in tensors_in(o) if v.ndim), t.view(-1).long())
    learn = new_learner(model=Gives(f), dls=DataLoaders(*(TfmdDL(items, bs=8, shuffle=s, num_workers=0) for s in (True,False))), loss_func=loss or own, metrics=[], **kwargs)
    learn.fit(1, 1e-2, cbs=LatentMonitor(1, layer='net.3:input'))
    return [[v for v in vs if not math.isnan(v)] for vs in learn.recorder.terms.values()]

@pytest.mark.parametrize('out', GIVES)
def test_models_that_return_more_than_a_tensor(out):
    if out == 'ModelOutput': pytest.importorskip('transformers')
    want = terms_of(lambda z: z)
    assert terms_of(GIVES[out]) == want and len(want) == 2 and all(len(v) == 2 for v in want)
    assert terms_of(GIVES[out], x=lambda x: {'x': x}) == want                            # and a dict as the one input

@pytest.mark.parametrize('f', [lambda z: z[:,:1], lambda z: z[:,0]], ids=['column','number'])
def test_one_output_counts_for_two_classes(f):
    bce = lambda o, t: F.binary_cross_entropy_with_logits(o.view(-1), t.view(-1).float())
    y = lambda y: y % 2
    got = terms_of(f, y=y, loss=bce)
    class Two(Gives): pass
    both = lambda o, t: F.binary_cross_entropy_with_logits(o[:,0], t.view(-1).float())
    want = terms_of(lambda z: torch.stack([z[:,0],z[:,1]*0], 1), y=y, loss=both)
    close(got[0], want[0], eps=1e-6); close(got[1], want[1], eps=1e-6)

def test_labels_out_of_range_are_told_at_the_end_of_the_epoch():
    zero = lambda p, y: p.sum()*0
    for y,said in ((torch.arange(24)%4,'from 0 to 3, but there are 3'), (torch.arange(24)%3-1,'from -1 to 1, but there are 3')):
        learn = new_learner(dls=tensor_dls((data()[0],y), (data()[0],y), vocab=range(3), bs=8, device='cpu'), loss_func=zero, metrics=[])
        with pytest.raises(ValueError, match=f'LatentMonitor: the labels run {said}'): learn.fit(1, 1e-2, cbs=LatentMonitor(1))
        assert not hooks(learn.model)

def inplace(inplace=True): set_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(inplace=inplace), nn.Linear(8,3))
@pytest.mark.parametrize('layer', ['1',1,'1:input','2','2:input'])
def test_a_monitor_of_a_layer_before_an_operation_in_place(layer):
    res = []
    for k in (True,False):
        learn = new_learner(model=inplace(k))
        learn.fit(1, 1e-2, cbs=LatentMonitor(1, layer=layer)); res.append([v for vs in learn.recorder.terms.values() for v in vs[1:]])
    assert res[0] == res[1] and all(map(math.isfinite, res[0]))

class Shorter(ItemTransform):
    "Every other batch is one place shorter"
    def __init__(self): self.odd = False
    def encodes(self, b): self.odd = not self.odd; return (b[0][...,:-1] if self.odd else b[0],*b[1:])

def test_features_that_vary_in_length():
    "There is no distance between them; behind a pooling there is"
    x,y = torch.randn(24, 2, 6, generator=torch.Generator().manual_seed(0)),data()[1]
    def make():
        dls = DataLoaders(TensorDL((x,y), bs=8, shuffle=True, vocab=range(3), after_batch=Shorter()), TensorDL((x,y), bs=8), device='cpu')
        return new_learner(model=nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)), dls=dls)
    refused(['LatentMonitor', '(4, 5)', '(4, 6)', 'pooling'], make(), LatentMonitor(1, layer='1'), trained=True)
    learn = make()
    learn.fit(1, 1e-2, cbs=LatentMonitor(1, layer='2'))
    assert all(len(v) == 3 and all(map(math.isfinite, v[1:])) for v in learn.recorder.terms.values())
