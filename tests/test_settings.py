"Weight decay and dropout as callbacks: what they set, against steps by hand, and that it is put back."
from common import *

class See(Callback):
    "What is set while a batch is trained on"
    run_valid = False
    def before_fit(self):
        self.wds,self.ps,self.now = [],[],[]
        self.hooks = [m.register_forward_hook(lambda m,i,o: self.now.append(m.p)) for m in self.learn.model.modules() if 'Dropout' in type(m).__name__]
    def before_batch(self): self.now = []
    def after_pred(self):
        self.wds.append([h['wd'] for h in self.opt.hypers])
        self.ps.append([*self.now])
    def after_fit(self):
        for h in self.hooks: h.remove()

def two_dropouts(): return nn.Sequential(nn.Flatten(), nn.Dropout(.1), nn.Linear(64, 8), nn.Sequential(nn.ReLU(), nn.Dropout(.3)), nn.Linear(8, 3))

@pytest.mark.parametrize('wd', [0.,.5,3.])
def test_one_step_of_sgd(wd):
    "w ← (1 − lr·wd)·w − lr·g; biases are left out"
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), dls=tensor_dls(data(8), data(8), bs=8, device='cpu'), opt_func=SGD)
    w,b = (p.detach().clone().requires_grad_() for p in learn.model[1].parameters())
    x,y = (t.as_subclass(Tensor) for t in learn.dls.train.new(shuffle=False).one_batch())
    gw,gb = torch.autograd.grad(F.cross_entropy(x.flatten(1) @ w.T + b, y), (w,b))
    learn.fit(1, .1, cbs=WeightDecay(wd))
    close(learn.model[1].weight.detach(), ((1 - .1*wd)*w - .1*gw).detach(), 1e-6)
    close(learn.model[1].bias.detach(), (b - .1*gb).detach() if learn.wd_bn_bias is False else b.detach(), 1e-6)

def test_it_is_as_fit_does_it():
    def fitted(**kwargs): learn = new_learner(); learn.fit_one_cycle(2, 1e-2, **kwargs); return weights(learn)
    assert same(fitted(cbs=WeightDecay(2.)), fitted(wd=2.)) and not same(fitted(), fitted(wd=2.))

def test_set_in_training_and_put_back():
    learn,see = new_learner(model=two_dropouts(), splitter=lambda m: L(m[:3], m[3:]).map(params)),See()
    learn.create_opt()
    learn.opt.set_hyper('wd', [.02,.03])
    learn.fit(2, 1e-2, cbs=[WeightDecay(.7),DropoutRate(.6),see])
    assert see.wds == [[.7,.7]]*6 and see.ps == [[.6,.6]]*6
    assert [h['wd'] for h in learn.opt.hypers] == [.02,.03] and [m.p for m in learn.model.modules() if isinstance(m, nn.Dropout)] == [.1,.3]

def test_of_some_layers():
    learn,see = new_learner(model=two_dropouts()),See()
    learn.fit(1, 1e-2, cbs=[DropoutRate(.6, layer='3'),see])
    assert see.ps == [[.1,.6]]*3

def test_all_kinds_of_dropout():
    learn = new_learner(model=nn.Sequential(nn.Dropout2d(.1), nn.Flatten(), nn.AlphaDropout(.1), nn.Linear(64, 3)))
    see = See()
    learn.fit(1, 1e-2, cbs=[DropoutRate(.4),see])
    assert see.ps == [[.4,.4]]*3 and learn.model[0].p == learn.model[2].p == .1

def test_another_callback_validates_in_between():
    "fastai fires `before_fit` then too"
    learn,see = new_learner(model=two_dropouts()),See()
    def again(l):
        for cb in l.cbs: isinstance(cb, (WeightDecay,DropoutRate)) and cb.before_fit()
    learn.fit(1, 1e-2, cbs=[WeightDecay(.7),DropoutRate(.6),see,Probe(run_valid=False, after_batch=again)])
    assert see.wds == [[.7]]*3 and see.ps == [[.6,.6]]*3 and [h['wd'] for h in learn.opt.hypers] == [.01]

@pytest.mark.parametrize('cbs,said', [(lambda: [WeightDecay(.1),WeightDecay(.2)], ['WeightDecay','sets the weight decay too']),
                                      (lambda: [DropoutRate(.1),DropoutRate(.2, layer='3')], ['DropoutRate','the rate of the same layers']),
                                      (lambda: [DropoutRate(.1, layer='4')], ["layer='4'",'no dropout layers']),
                                      (lambda: [DropoutRate(.1, layer='9')], ["layer='9'",'there is no layer'])], ids=['two decays','two rates','no dropout','no layer'])
def test_refused(cbs, said):
    learn = new_learner(model=two_dropouts())
    before = weights(learn)
    raises(said, lambda: learn.fit(1, 1e-2, cbs=cbs()))
    assert same(before, weights(learn)) and [h['wd'] for h in learn.opt.hypers] == [.01] and learn.model[1].p == .1

def test_two_rates_for_different_layers():
    learn,see = new_learner(model=two_dropouts()),See()
    learn.fit(1, 1e-2, cbs=[DropoutRate(.5, layer='1'),DropoutRate(.6, layer='3'),see])
    assert see.ps == [[.5,.6]]*3 and [learn.model[1].p,learn.model[3][1].p] == [.1,.3]

@pytest.mark.parametrize('make,v', [(WeightDecay,-1), (WeightDecay,'much'), (DropoutRate,1.), (DropoutRate,-.1)])
def test_bad_arguments(make, v): raises([make.__name__, repr(v)], lambda: make(v))

def test_optimizers_of_pytorch():
    learn,see = new_learner(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)),See()
    learn.fit(1, 1e-2, cbs=[WeightDecay(.7),see])
    assert see.wds == [[.7]]*3 and [h['wd'] for h in learn.opt.hypers] == [.01]

def test_layers_that_are_run_again_in_the_backward_pass():
    "Activation checkpointing draws the same units, at the same rate"
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            for m in self: x = torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False) if self.training else m(x)
            return x
    res = []
    for cls in (nn.Sequential,Checkpointed):
        set_seed(3)
        learn = new_learner(model=cls(*two_dropouts()))
        learn.fit(2, 1e-2, cbs=DropoutRate(.6))
        res.append(weights(learn))
    for k in res[0]: torch.testing.assert_close(res[0][k], res[1][k], rtol=1e-4, atol=1e-6)
