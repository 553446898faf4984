"Finding layers, and the places where all of the signal passes, on the kinds of network that fastai users train."
import pytest, timm, torchvision
from fastai.tabular.all import *
from fastai.text.models.core import get_text_classifier, AWD_LSTM
from common import *

X = torch.randn(2,3,64,64)

def plain(arch): return lambda: arch(weights=None)
def backbone(name): return lambda: timm.create_model(name, pretrained=False, num_classes=10)

def tabular():
    df = pd.DataFrame(dict(cat=list('abab')*6, num=np.random.randn(24), y=list('pq')*12))
    dls = TabularDataLoaders.from_df(df, procs=[Categorify,Normalize], cat_names=['cat'], cont_names=['num'], y_names='y', bs=8, device='cpu')
    return tabular_learner(dls, layers=[20,10])

def vision():
    dls = tensor_dls((torch.randn(24,3,64,64),data()[1]), (torch.randn(12,3,64,64),data(12)[1]), bs=8, device='cpu')
    return vision_learner(dls, models.resnet18, pretrained=False, loss_func=CrossEntropyLossFlat(), n_out=3, normalize=False)

def unet():
    y = torch.randint(0, 2, (8,64,64))
    return unet_learner(tensor_dls((torch.randn(8,3,64,64),y), (torch.randn(4,3,64,64),y[:4]), bs=4, device='cpu', vocab=['a','b']), models.resnet18, pretrained=False,
                        n_out=2, loss_func=CrossEntropyLossFlat(axis=1), normalize=False)

CASES = {   # model, input, the layers ManifoldMixup mixes by default, and with layers='all'
    'torchvision resnet18': (plain(torchvision.models.resnet18), X, ['input','layer1','layer2'], ['layer3','layer4']),
    'torchvision vgg11':    (plain(torchvision.models.vgg11), X, ['input','features.1','features.4'], None),
    'torchvision densenet': (plain(torchvision.models.densenet121), X, ['input','features.denseblock1','features.denseblock2'], ['features.denseblock3','features.denseblock4']),
    'torchvision mobilenet':(plain(torchvision.models.mobilenet_v2), X, None, None),
    'torchvision convnext': (plain(torchvision.models.convnext_tiny), X, ['input','features.1','features.3'], ['features.5','features.7']),
    'timm resnet26d':       (backbone('resnet26d'), X, ['input','layer1','layer2'], ['layer3','layer4']),
    'timm efficientnet':    (backbone('efficientnet_b0'), X, None, None),
    'timm vit':             (lambda: timm.create_model('vit_tiny_patch16_224', pretrained=False, img_size=64), X, ['input','blocks.2','blocks.5'], ['blocks.8','blocks.11']),
    'fastai xresnet18':     (lambda: xresnet18(n_out=10), X, ['input','4','5'], ['6','7']),
    'fastai vision_learner':(lambda: vision().model, X, ['input','0.4','0.5'], ['0.6','0.7']),
    'fastai unet_learner':  (lambda: unet().model, X, ['input','layers.11'], []),
    'our mlp':              (mlp, torch.randn(2,1,28,28), ['input','1','2','3','4','5'], []),
    'our cnn':              (cnn, torch.randn(2,3,32,32), ['input','1','3'], ['5','6']),
    'our resnet20':         (resnet20, torch.randn(2,3,32,32), ['input','stage1','stage2'], ['stage3']),
    'linear, relu, ...':    (lambda: nn.Sequential(nn.Linear(4,5), nn.ReLU(), nn.Linear(5,5), nn.ReLU(), nn.Linear(5,2)), torch.randn(2,4), ['input','1','3'], []),
}

def names(sites): return [str(s) for s in sites]

@pytest.mark.parametrize('case', CASES)
def test_default_layers(case):
    make,x,first,rest = CASES[case]
    set_seed(0)
    model = make()
    before = {k: v.clone() for k,v in model.state_dict().items()}
    training,state,hooked = [m.training for m in model.modules()],torch.get_rng_state(),hooks(model)
    default,every = mixing_sites(model, (x,)),mixing_sites(model, (x,), 'all')
    if first: assert names(default) == first
    if rest is not None: assert names(every) == first + rest
    assert names(default) == names(every)[:len(default)] and len(default) > 1
    # looking changes nothing
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items()) and training == [m.training for m in model.modules()]
    assert torch.equal(torch.get_rng_state(), state) and hooks(model) == hooked
    model.eval()
    for s in every: assert all_passes(model, s, x), f'{s} is passed by'

@torch.no_grad()
def all_passes(model, site, x):
    "Does the tensor at `site` alone decide the output? Put that of one input into the pass of another, and see"
    other,kept = torch.randn_like(x),[]
    h = site.hook(lambda z: kept.append(z.clone())); want = model(x); h.remove()
    h = site.hook(lambda z: kept[0]);                got = model(other); h.remove()
    return torch.allclose(want, got, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('case', ['torchvision resnet18','fastai unet_learner','timm vit','torchvision densenet'])
def test_passes_means_that_nothing_goes_round(case):
    "The count of paths against the experiment, layer by layer"
    set_seed(1)
    model,x = CASES[case][0](),CASES[case][1]
    model.eval()
    recs = [r for r in trace_layers(model, (x,)) if r.name.count('.') < 3][:-1]
    out = [r for r in recs if not r.out and not isinstance(r.module, nn.Identity)]
    passed,beside = [r for r in recs[::3] if r.out],[r for r in out[::4] if r.name.count('.') > 0 and not r.name.startswith(('fc','classifier','head'))]
    assert passed and beside
    for r in passed: assert all_passes(model, Site(r.name, r.module, at=r.i), x), r.name
    for r in beside: assert not all_passes(model, Site(r.name, r.module, at=r.i), x), r.name

def test_tabular():
    learn = tabular()
    xb = learn.dls.one_batch()[:2]
    assert names(mixing_sites(learn.model, xb)) == ['layers:input','layers.0','layers.1']
    assert str(trace_layers(learn.model, xb).activations()) == 'layers.1.2:input'   # what leaves the ReLU, before batch normalisation
    table = latent_layers(learn.model, *xb)
    assert 'mixup' in table.default['layers:input'] and table.passes['layers:input']
    learn.fit(1, cbs=[ManifoldMixup(), VarianceRegularizer()])

def test_text():
    model = get_text_classifier(AWD_LSTM, 50, 3, seq_len=10, config={**awd_lstm_clas_config(), 'emb_sz': 12, 'n_hid': 12, 'n_layers': 2})
    for p in model[0].parameters(): p.requires_grad_(False)    # as a frozen language model
    x = torch.randint(2, 50, (4,14))
    assert names(mixing_sites(model, (x[:,:10],))) == ['0.module.encoder_dp','0']    # the embeddings, and the encoder's output
    assert names(mixing_sites(model, (x,))) == ['0']           # in the encoder, long texts pass in chunks, without some of the rows
    for layer in ('0.module.encoder_dp','0.module.rnns.0'):
        with pytest.raises(ValueError, match='SentenceEncoder.*seq_len=14'): mixing_sites(model, (x,), layer)
        with pytest.raises(ValueError, match='SentenceEncoder.*seq_len=14'): trace_layers(model, (x,)).reading(Site.named(model, layer)[-1])
    passes = latent_layers(model, x).passes
    assert passes['0'] and not passes['0.module.encoder_dp']
    assert not any(p.requires_grad for p in model[0].parameters())

def awd_lstm_clas_config():
    from fastai.text.all import awd_lstm_clas_config as c
    return c

@pytest.mark.parametrize('make', [vision, unet], ids=['vision_learner','unet_learner'])
def test_learners_train(make):
    learn = make()
    learn.remove_cb(ProgressCallback); learn.logger = noop
    before = weights(learn)
    learn.fit(1, cbs=ManifoldMixup())
    assert not same(weights(learn), before) and math.isfinite(learn.recorder.losses[-1])

@pytest.mark.parametrize('spec,want', [('1',['1']), ('?',list('0123')), ('1.*',['1.0','1.1']), (nn.ReLU,['1.1','2.1']), (-1,['3']), (0,['0']), (lambda m: m[2][0],['2.0']), (lambda m: '2',['2'])])
def test_get_layers(spec, want):
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4,8), nn.ReLU()), nn.Sequential(nn.Linear(8,6), nn.ReLU()), nn.Linear(6,3))
    assert [n for n,_ in get_layers(model, spec)] == want
    assert get_layer(model, spec) is dict(model.named_modules())[want[-1]]

def test_the_model_itself(): assert get_layer(net_ := net(), lambda m: m) is net_

def test_without_a_batch():
    t = latent_layers(resnet20())
    assert list(t.columns) == ['type'] and t.type['stage1'] == 'Sequential'
