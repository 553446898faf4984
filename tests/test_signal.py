"Where the signal goes: places that it goes round, that are passed several times, that never run, or that do not reach the prediction."
import gc, pytest
from fastai.text.all import get_text_classifier, AWD_LSTM, awd_lstm_clas_config
from torch.utils.checkpoint import checkpoint
from common import *

X,Y = torch.randn(24,8),torch.arange(24)%3
def dls_of(*xs, y=Y, bs=8): return tensor_dls((*xs,y), (*xs,y), bs=bs, device='cpu', n_inp=len(xs), vocab=range(3))
def learner(model, *xs, **kw): return new_learner(model=model, dls=dls_of(*(xs or (X,))), metrics=[], **kw)
def first_loss(learn, cb, at=0):
    "What the callback left in the first batch: λ, shift, site, inputs, targets, prediction"
    seen = []
    def note(l):
        if not seen: seen.append((getattr(cb, 'lam', None), getattr(cb, 'shift', None), cb.site, l.xb, l.yb, first(tensors_in(l.pred)).detach().clone(), l.loss.item()))
    learn.fit(1, 0., cbs=[cb, Probe(after_loss=note, run_valid=False)])
    return seen[0]
def mixed(t, lam, shift): return lam*t + (1-lam)*torch.stack([t[(i-shift) % len(t)] for i in range(len(t))])   # by hand

# 1 Signal that goes round

class Skip(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b = nn.Linear(8,8),nn.Linear(8,8)
    def forward(self, x): return x + self.b(self.a(x).relu())

class Detached(nn.Module):
    "A path that autograd does not see"
    def __init__(self): super().__init__(); self.a,self.out = nn.Linear(8,8),nn.Linear(8,3)
    def forward(self, x): z = self.a(x); return self.out(z + x.detach())

class Identity(nn.Module):
    "An identity on one branch hands on the very tensor of the other"
    def __init__(self): super().__init__(); self.i,self.a,self.out = nn.Identity(),nn.Linear(8,8),nn.Linear(8,3)
    def forward(self, x): z = self.a(x); return self.out(self.i(z).relu() + z)

class Parts(nn.Module):
    "An encoder that gives a list, of which the decoder drops the first"
    class Enc(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(8,8),nn.Linear(8,8)
        def forward(self, x): z = self.a(x).relu(); return [x, z, self.b(z)]
    def __init__(self, keep=slice(1,None)): super().__init__(); self.encoder,self.keep,self.out = self.Enc(),keep,nn.Linear(8,3)
    def forward(self, x): return self.out(sum(self.encoder(x)[self.keep]))

GOES_ROUND = {
    'residual': (lambda: nn.Sequential(nn.Linear(8,8), Skip(), nn.Linear(8,3)), ['1.a','1.b','1.a:input'], ['0','1','1:input']),
    'detached': (Detached, ['a'], []),
    'identity': (Identity, ['i','i:input'], ['a']),
    'list':     (Parts, ['encoder.b'], ['encoder','encoder.a']),
}
@pytest.mark.parametrize('case', GOES_ROUND)
@pytest.mark.parametrize('make', [lambda l: ManifoldMixup(layers=l, input_mixup=False), lambda l: PhantomEmbedding(layer=l, source='batch'), lambda l: PhantomEmbedding(layer=l),
                                  lambda l: SemiSupervisedMixup(DataLoader(list(zip(X)), bs=8), layers=l, input_mixup=False)], ids=['mixup','phantom batch','phantom','semisup'])
def test_signal_that_goes_round(case, make):
    net,bad,good = GOES_ROUND[case]
    for l in bad: refused([repr(l), f'not all of the signal passes {l}', *(g for g in good[:1] if ':' not in g)], learner(net()), make(l))
    for l in good: learner(net()).fit(1, cbs=make(l))

def test_all_parts_of_a_list_are_mixed():
    learn,cb = learner(Parts()),ManifoldMixup(layers='encoder', input_mixup=False)
    lam,shift,site,xb,yb,pred,loss = first_loss(learn, cb)
    z = learn.model.encoder(xb[0])[1:]
    close(pred, learn.model.out(sum(mixed(t, lam, shift) for t in z)))
    close(loss, (lam*F.cross_entropy(pred, yb[0]) + (1-lam)*F.cross_entropy(pred, yb[0].roll(shift))).item())

def test_images_unets():
    from torchvision.models import resnet18
    r,x = resnet18(weights=None),torch.randn(4,3,32,32)
    with pytest.raises(ValueError, match='not all of the signal passes layer1.0.conv1; these would do: conv1, bn1, relu, maxpool, layer1'): mixing_sites(r, (x,), 'layer1.0.conv1')

class Dict(Parts):
    class Enc(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(8,8),nn.Linear(8,8)
        def forward(self, x): return dict(low=(self.a(x),), high=self.b(x), note='text', size=torch.tensor(8))
    def forward(self, x): o = self.encoder(x); return self.out(o['low'][0]*o['high'])
def test_dicts_and_tuples():
    learn,cb = learner(Dict()),ManifoldMixup(layers='encoder', input_mixup=False)
    lam,shift,_,xb,_,pred,_ = first_loss(learn, cb)
    o = learn.model.encoder(xb[0])
    close(pred, learn.model.out(mixed(o['low'][0], lam, shift)*mixed(o['high'], lam, shift)))

# 2 One module, several passes

class Shared(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b,self.c,self.act = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,3),nn.ReLU()
    def forward(self, x): return self.c(self.act(self.b(self.act(self.a(x)))))

@pytest.mark.parametrize('layer,at', [('act',0), ('act#1',0), ('act#2',1), (nn.ReLU,0)], ids=plain)
def test_a_module_that_is_passed_twice_is_mixed_once(layer, at):
    learn,cb = learner(Shared()),ManifoldMixup(layers=layer, input_mixup=False)
    lam,shift,site,xb,yb,pred,loss = first_loss(learn, cb)
    m = learn.model
    z = m.act(m.a(xb[0]))
    want = m.c(m.act(m.b(mixed(z, lam, shift)))) if at == 0 else m.c(mixed(m.act(m.b(z)), lam, shift))
    close(pred, want); assert str(site) == f'act#{at+1}'

def test_shared_by_default():
    assert [str(s) for s in mixing_sites(Shared(), (X,))] == ['input','act#1','act#2']
    refused(['act#3', 'never reached act#3'], learner(Shared()), ManifoldMixup(layers='act#3'))

class Siamese(nn.Module):
    def __init__(self): super().__init__(); self.body,self.head = nn.Sequential(nn.Linear(8,8), nn.ReLU()),nn.Linear(16,3)
    def forward(self, a, b): return self.head(torch.cat([self.body(a), self.body(b)], 1))
def test_passes_side_by_side_are_mixed_alike():
    learn,cb = learner(Siamese(), X, X.flip(0)),ManifoldMixup(layers='body', input_mixup=False)
    lam,shift,site,xb,_,pred,_ = first_loss(learn, cb)
    m = learn.model
    close(pred, m.head(torch.cat([mixed(m.body(x), lam, shift) for x in xb], 1))); assert str(site) == 'body'

def test_penalty_of_one_of_several_passes():
    for layer,f in (('act#2', lambda m,x: variance_penalty(m.act(m.b(m.act(m.a(x)))))), ('act#1', lambda m,x: variance_penalty(m.act(m.a(x)))),
                    ('act', lambda m,x: (variance_penalty(m.act(m.a(x))) + variance_penalty(m.act(m.b(m.act(m.a(x))))))/2)):
        learn,cb,seen = learner(Shared()),VarianceRegularizer(classwise=False, layer=layer),[]
        learn.fit(1, 0., cbs=[cb, Probe(after_loss=lambda l: seen.append((cb.term.item(), f(l.model, l.xb[0]).item())), run_valid=False)])
        for got,want in seen: assert got == pytest.approx(want, rel=1e-5)

class TimeFirst(nn.Module):
    def __init__(self): super().__init__(); self.t,self.out = nn.TransformerEncoder(nn.TransformerEncoderLayer(2,2,8), 2),nn.Linear(2,3)
    def forward(self, x): return self.out(self.t(x.view(len(x),-1,2).transpose(0,1)).mean(0))
@pytest.mark.parametrize('n,bs', [(8,4), (10,5), (4,2), (8,8)])
def test_a_place_that_has_time_first(n, bs):
    "As many steps as samples: nothing is mixed along time"
    x = torch.randn(24,n)
    refused(["'t.layers.0'", 'one floating row a sample'], new_learner(model=TimeFirst(), dls=dls_of(x, bs=bs), metrics=[]), ManifoldMixup(layers='t.layers.0'))
    with pytest.warns(UserWarning, match='the input alone is mixed'): new_learner(model=TimeFirst(), dls=dls_of(x, bs=bs), metrics=[]).fit(1, cbs=ManifoldMixup())

class Two(nn.Module):
    class Body(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(8,8),nn.Linear(8,8)
        def forward(self, x): return self.a(x), self.b(x).relu()
    def __init__(self): super().__init__(); self.two,self.out = self.Body(),nn.Linear(8,3)
    def forward(self, x): return self.out(self.two(x)[1])
def test_of_several_tensors_the_one_that_is_used_is_read():
    learn,cb,seen = learner(Two()),ActivationL1(1., layer='two'),[]
    learn.fit(1, 0., cbs=[cb, Probe(after_loss=lambda l: seen.append((cb.term.item(), l.model.two.b(l.xb[0]).relu().abs().mean().item())), run_valid=False)])
    assert all(a == pytest.approx(b, rel=1e-5) for a,b in seen)

class Heads(nn.Module):
    "Two tasks, of which the loss uses one or both"
    def __init__(self): super().__init__(); self.body,self.mid,self.one,self.two = nn.Linear(8,8),nn.Linear(8,8),nn.Linear(8,3),nn.Linear(8,3)
    def forward(self, x): z = self.body(x).relu(); return self.one(self.mid(z).relu()),self.two(z)
def test_all_outputs_that_the_loss_uses_must_pass():
    both,one = lambda p,y: F.cross_entropy(p[0], y) + F.cross_entropy(p[1], y),lambda p,y: F.cross_entropy(p[0], y)
    for make in (lambda l: ManifoldMixup(layers=l, input_mixup=False), lambda l: PhantomEmbedding(layer=l, source='batch')):
        refused(['mid', 'output 1 of the model', 'body'], learner(Heads(), loss_func=both), make('mid'))
        learner(Heads(), loss_func=one).fit(1, cbs=make('mid'))
        learner(Heads(), loss_func=both).fit(1, cbs=make('body'))

class Vmapped(nn.Module):
    def __init__(self): super().__init__(); self.a,self.out = nn.Sequential(nn.Linear(8,8), nn.ReLU()),nn.Linear(8,3)
    def forward(self, x): return self.out(torch.func.vmap(self.a)(x))
class NoGrad(Vmapped):
    def forward(self, x):
        with torch.no_grad(): z = self.a(x)
        return self.out(z)
@pytest.mark.parametrize('net,word', [(lambda: torch.jit.trace(nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3)), X[:8]), 'torch.jit'), (Vmapped,'torch.func'), (NoGrad,'without gradients')], ids=['jit','vmap','no_grad'])
def test_what_cannot_be_looked_into(net, word):
    refused([word], learner(net()), ManifoldMixup())
    refused([word], learner(net()), ManifoldMixup(layers=0))
    refused([word], learner(net()), VarianceRegularizer(layer=0))
    learner(net()).fit(1, cbs=ManifoldMixup(layers=[]))

class Counting(nn.Module):
    "A model with a state of its own, in attributes and in a list"
    def __init__(self): super().__init__(); self.a,self.out,self.n,self.h,self.log,self.bn = nn.Linear(8,8),nn.Linear(8,3),0,None,[],nn.BatchNorm1d(8)
    def forward(self, x):
        self.n += 1; self.log.append(len(x))
        z = self.bn(self.a(x)) + (0 if self.h is None else self.h)
        self.h = z.detach(); self.extra = z
        return self.out(F.dropout(z.relu(), .5, self.training))
def test_looking_leaves_no_trace():
    m = Counting()
    before,state = (m.n,m.h,m.log[:],module_state(m)),random_state()
    s = trace_layers(m, (X,))
    assert (m.n,m.h,m.log) == before[:3] and not hasattr(m, 'extra') and same_state(module_state(m), before[3]) and state == random_state() and not hooks(m)
    assert {r.name: bool(r.out) for r in s} == {'a': True, 'bn': True, 'out': False}

# 3 Registration is not execution

class HeadFirst(nn.Module):
    def __init__(self): super().__init__(); self.head,self.body = nn.Linear(5,3),nn.Sequential(nn.Linear(8,5), nn.ReLU())
    def forward(self, x): return self.head(self.body(x))
class Aux(HeadFirst):
    def __init__(self): super().__init__(); self.aux = nn.Linear(8,3)
    def forward(self, x): p = super().forward(x); return (p, self.aux(x)) if self.training else p
class Distilled(HeadFirst):
    def __init__(self): super().__init__(); self.never,self.dist = nn.Linear(9,9),nn.Linear(5,7)
    def forward(self, x): z = self.body(x); return dict(dist=self.dist(z), logits=self.head(z))
class Conv(nn.Module):
    def __init__(self): super().__init__(); self.cls = nn.Conv1d(4,3,1); self.body = nn.Sequential(nn.Conv1d(1,4,3), nn.ReLU())
    def forward(self, x): return self.cls(self.body(x[:,None])).mean(2)

@pytest.mark.parametrize('net,want,shape', [(HeadFirst,'head:input',(5,)), (Aux,'head:input',(5,)), (Distilled,'head:input',(5,)), (Conv,'cls:input',(4,6))], ids=plain)
def test_the_layer_that_makes_the_prediction(net, want, shape):
    loss = lambda p,y: F.cross_entropy(first(o for o in tensors_in(p) if o.shape[1] == 3), y)
    for cb in (VarianceRegularizer(), CenterLoss(), ITRA(source='split', warmup=0), PhantomEmbedding(source='batch')):
        learn,seen = learner(net(), loss_func=loss),[]
        learn.fit(1, 1e-3, cbs=[cb, Probe(after_loss=lambda l: seen.append((str(cb.site), cb.site.features(l.model, *l.xb).shape[1:])), run_valid=False)])
        assert set(seen) == {(want, shape)}

# 5 Behind normalisation and dropout

def bn_head(): return nn.Sequential(nn.Linear(8,6), nn.ReLU(), nn.BatchNorm1d(6), nn.Dropout(.5), nn.Linear(6,3))
def test_the_default_is_before_normalisation_and_dropout():
    learn,cb,seen = learner(bn_head()),VarianceRegularizer(classwise=False),[]
    learn.fit(1, 0., cbs=[cb, Probe(after_loss=lambda l: seen.append((cb.term.item(), variance_penalty(l.model[:2](l.xb[0])).item(), str(cb.site))), run_valid=False)])
    assert all(a == pytest.approx(b, rel=1e-5) and at == '2:input' for a,b,at in seen)

@pytest.mark.parametrize('layer,behind', [('2','BatchNorm1d'), ('3','Dropout'), ('4:input','Dropout'), ('3:input','BatchNorm1d'), ('1',None), ('0',None), (None,None)])
def test_a_choice_behind_them_is_warned_of(layer, behind):
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learner(bn_head()).fit(2, cbs=VarianceRegularizer(layer=layer))
    got = [str(o.message) for o in w if 'variance_regularizer' in str(o.message)]
    assert len(got) == (behind is not None) and all(behind in g and repr(layer) in g for g in got)

# 7, 8, 23

def test_features_are_taken_as_they_leave_the_layer():
    "An in-place layer behind changes the tensor that the hook saw"
    net = lambda: nn.Sequential(nn.Linear(8,8), nn.ReLU(inplace=True), nn.Linear(8,3))
    for layer,f in (('0', lambda m,x: m[0](x)), ('1:input', lambda m,x: m[0](x)), ('1', lambda m,x: m[0](x).relu()), (None, lambda m,x: m[0](x).relu())):
        for make,g in ((lambda: ActivationL1(1., layer=layer), activation_l1), (lambda: VarianceRegularizer(classwise=False, layer=layer), variance_penalty)):
            learn,cb,seen = learner(net()),make(),[]
            learn.fit(1, 0., cbs=[cb, Probe(after_loss=lambda l: seen.append((cb.term.item(), g(f(l.model, l.xb[0])).item())), run_valid=False)])
            assert seen and all(a == pytest.approx(b, rel=1e-5) for a,b in seen)

def test_the_gradient_is_that_of_what_left_the_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8,8), nn.ReLU(inplace=True), nn.Linear(8,3))
    learn,grads = learner(net),[]
    x,y = X[:8],Y[:8]
    want = torch.autograd.grad(F.cross_entropy(net(x), y) + 2*net[0](x).abs().mean(), net[0].weight)[0]
    learn.fit(1, 0., cbs=[ActivationL1(2., layer='0'), Probe(order=-50, before_batch=lambda l: setattr(l, 'xb', (x,)) or setattr(l, 'yb', (y,))), Probe(after_backward=lambda l: grads.append(net[0].weight.grad.clone()), run_valid=False)])
    close(grads[0].flatten(), want.flatten())

class Checkpointed(nn.Module):
    def __init__(self, reentrant): super().__init__(); self.a,self.b,self.out,self.reentrant = nn.Linear(8,8),nn.Sequential(nn.Linear(8,8), nn.ReLU()),nn.Linear(8,3),reentrant
    def forward(self, x): return self.out(checkpoint(self.b, self.a(x), use_reentrant=self.reentrant))
@pytest.mark.parametrize('cb', [lambda: VarianceRegularizer(layer='b.0'), lambda: CenterLoss(layer='b.0'), lambda: ManifoldMixup(layers='b.0'), lambda: PhantomEmbedding(layer='b.0', source='batch')], ids=['VR','center','mixup','phantom'])
def test_within_a_reentrant_checkpoint(cb):
    refused(['b.0', 'use_reentrant=False'], learner(Checkpointed(True)), cb())
    learn = learner(Checkpointed(False))
    learn.fit(1, cbs=cb())

def test_frozen_layers_are_warned_of_once():
    net = nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3))
    for p in net[0].parameters(): p.requires_grad_(False)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always'); learner(net).fit(2, cbs=VarianceRegularizer())
    assert [str(o.message) for o in w if 'changes no weight' in str(o.message)] == ['variance_regularizer: nothing that is trained lies below 2:input, so the penalty changes no weight: unfreeze, or choose a layer above']

def test_weight_times_term():
    shares,phantom,schedule = [],PhantomEmbedding(source='batch'),SchedLin(0,1)
    learn = learner(Shared())
    learn.fit(2, cbs=[CenterLoss(.1), VarianceRegularizer(schedule), phantom, Probe(after_loss=lambda l: shares.append(phantom.share), run_valid=False)])
    terms,weighted = learn.recorder.terms,learn.recorder.weighted_terms
    assert weighted.keys() == terms.keys() == {'center_loss','cw_vr_loss','phantom_loss'}
    close(weighted['center_loss'], [.1*v for v in terms['center_loss']])
    close(weighted['cw_vr_loss'][1:], [schedule(i/6)*v for i,v in enumerate(terms['cw_vr_loss'])][1:])
    close(weighted['phantom_loss'], [(1-a)*v for a,v in zip(shares, terms['phantom_loss'])])   # as in Eq. 3

class Rerun(Shared):
    def forward(self, x): return self.c(checkpoint(lambda z: self.act(self.b(self.act(z))), self.a(x), use_reentrant=False))
def test_one_of_several_passes_that_a_checkpoint_runs_again():
    refused(['act#2', 'activation checkpointing'], learner(Rerun()), ManifoldMixup(layers='act#2', input_mixup=False), Exception)

def test_nothing_stays_uncompiled_for_a_learner_that_was_thrown_away():
    from latentreg_fastai.layers import Uncompiled
    learn = learner(nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3)), cbs=ManifoldMixup())
    learn.model.compile(backend='eager')
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit(1, cbs=Probe(after_loss=lambda l: (_ for _ in ()).throw(KeyboardInterrupt)))
    assert Uncompiled.n == 1
    del learn; gc.collect()
    assert Uncompiled.n == 0

# What was found by trying many networks

class Tied(nn.Module):
    "The prediction is made with weights that no called layer holds"
    def __init__(self): super().__init__(); self.body,self.head = nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU()),nn.Linear(8,3)
    def forward(self, x): return F.linear(self.body(x), self.head.weight)
class Recurrent(nn.Module):
    def __init__(self): super().__init__(); self.a,self.r = nn.Linear(8,8),nn.LSTM(4,3,batch_first=True)
    def forward(self, x): return self.r(self.a(x).view(len(x),2,4))[0][:,-1]
class Averaged(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b,self.c = nn.Linear(8,8),nn.Linear(8,3),nn.Linear(8,3)
    def forward(self, x): z = self.a(x).relu(); return (self.b(z) + self.c(z))/2
@pytest.mark.parametrize('net,words', [(Tied,['body.2','`layer` must be given']), (Recurrent,['a','`layer` must be given']), (Averaged,['not all of the signal passes','`layer` must be given'])], ids=plain)
@pytest.mark.parametrize('cb', [VarianceRegularizer, CenterLoss, lambda: PhantomEmbedding(source='batch'), lambda: LatentMonitor(1)], ids=['VR','center','phantom','monitor'])
def test_predictions_that_no_one_layer_makes(net, words, cb): refused(words, learner(net()), cb())

class LateCheckpoint(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b = nn.Linear(8,8),nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,3))
    def forward(self, x): return checkpoint(self.b, self.a(x), use_reentrant=True)
def test_a_checkpointed_head():
    for cb in (VarianceRegularizer(), PhantomEmbedding(source='batch')): refused(['b.2', 'use_reentrant=False'], learner(LateCheckpoint()), cb)
