"What is measured and drawn of a trained network (`LatentInterpretation`, viz, `plot_latent`) and while it is trained (`LatentMonitor`), against loops by hand."
import contextlib, io, matplotlib as mpl, pytest, subprocess
from collections import namedtuple

from fastai.interpret import Interpretation
from fastai.text.core import BaseTokenizer, Tokenizer
from fastai.text.data import Numericalize, SortedDL, pad_input
from common import *

alike = partial(torch.testing.assert_close, check_dtype=False)

pytestmark = pytest.mark.usefixtures('no_figures')

def by_hand(model, dl, at, input=False):
    "Features, (N, I), outputs and targets, batch by batch"
    found,outs,ys = [],[],[]
    modes = {m: m.training for m in model.modules()}
    h = at.register_forward_hook(lambda m,a,o: found.append((a[0] if input else o).detach()))
    model.eval()
    with torch.no_grad():
        for *xb,y in dl: outs.append(model(*xb)); ys.append(y)
    h.remove()
    for m,t in modes.items(): m.training = t
    return torch.cat(found).flatten(1).float(),torch.cat(outs),torch.cat(ys).as_subclass(Tensor)

from_learner = LatentInterpretation.from_learner
@pytest.fixture(scope='module')
def interp(): return from_learner(uneven_learner())

def made(z, y, vocab=None, probs=None, learn=None):
    "An interpretation of given arrays"
    z,y = torch.as_tensor(z, dtype=torch.float32),torch.as_tensor(y)
    probs = F.one_hot(y, int(y.max())+1).float() if probs is None else torch.as_tensor(probs)
    return LatentInterpretation(learn, SimpleNamespace(vocab=vocab), z, probs, y, 'here')

def random_interp(n, n_classes, units=6, seed=0, **kwargs):
    g = torch.Generator().manual_seed(seed)
    return made(torch.randn(n, units, generator=g)*torch.arange(1, units+1), torch.arange(n)%n_classes, probs=torch.randn(n, max(2, n_classes), generator=g).softmax(1), **kwargs)

# Gathering

@pytest.mark.parametrize('layer,name,input', [(None,'5',True), ('5','5',False), ('5:input','5',True), (2,'2',False), (-1,'5',False), ('2.0','2.0',False), ('2.0:input','2.0',True), (nn.Linear,'5',False), (nn.BatchNorm2d,'0.1',False),
                                              (lambda m: m[4],'4',False), ('module','4.1',False), ('0','0',False), ('0:input','0',True), ('*.1','4.1',False)], ids=plain)
def test_features_of_any_layer(layer, name, input):
    learn = uneven_learner()
    at = learn.model.get_submodule(name)
    i = from_learner(learn, at if layer == 'module' else layer)
    z,out,y = by_hand(learn.model, learn.dls.valid, at, input)
    assert i.features.dtype == torch.float32 and i.features.device.type == 'cpu' and type(i.features) is Tensor and not i.features.requires_grad
    assert torch.equal(i.features, z) and torch.equal(i.targets, y) and torch.equal(i.targets, learn.dls.valid_ds.tensors[1]) and str(i.site) == name + ':input'*input
    alike(i.probs, out.softmax(1))
    assert repr(i) == f'LatentInterpretation: 12 samples × {z.shape[1]} units at {i.site}' and i.vocab == ['ant','bee','cow'] and isinstance(i, Interpretation)

@pytest.mark.parametrize('loss,act,want', [(CrossEntropyLossFlat(), None, lambda o: o.softmax(1)), (nn.CrossEntropyLoss(), None, lambda o: o.softmax(1)), (F.cross_entropy, None, lambda o: o.softmax(1)), (LabelSmoothingCrossEntropyFlat(), None, lambda o: o.softmax(1)),
                                           (CrossEntropyLossFlat(), torch.sigmoid, torch.sigmoid), (nn.CrossEntropyLoss(), partial(torch.pow, exponent=2), torch.square)], ids=['flat','torch','function','smooth','act','act, torch'])
def test_probabilities(loss, act, want):
    learn = uneven_learner(loss_func=loss)
    i = from_learner(learn, act=act)
    alike(i.probs, want(by_hand(learn.model, learn.dls.valid, learn.model[5])[1]))

class Flip(RandTransform):
    "Augmentation that no one could miss: some images become their negative"
    order = 6                                                                         # after `ToTensor`
    def __init__(self): super().__init__(p=.5)
    def encodes(self, x:TensorImageBW): return 255-x

class Noise(RandTransform):
    order = 20                                                                        # after `IntToFloatTensor`
    def encodes(self, x:TensorImageBW): return x + torch.randn_like(x)

IMAGES = torch.randint(0, 256, (26,8,8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
def image_y(i): return ['cow','ant','bee'][i%3]
def block_dls(num_workers=0):
    block = DataBlock((ImageBlock(PILImageBW),CategoryBlock), get_x=lambda i: IMAGES[i].numpy(), get_y=image_y, splitter=IndexSplitter(range(20,26)), item_tfms=Flip, batch_tfms=Noise)
    return block.dataloaders(range(26), bs=8, num_workers=num_workers, device='cpu')
def tensor_image_dls(num_workers=0):
    x,y = TensorImageBW(IMAGES[:,None]),TensorCategory(tensor([(i+2)%3 for i in range(26)]))
    return tensor_dls((x[:20],y[:20]), (x[20:],y[20:]), vocab=['ant','bee','cow'], bs=8, device='cpu', after_batch=[IntToFloatTensor(),PadCrop(2),MirrorFlip(),Noise()])

@pytest.mark.parametrize('how', ['ds_idx','dl'])
@pytest.mark.parametrize('make', [block_dls,tensor_image_dls,partial(block_dls, 1), lambda: micro(block_dls()), lambda: micro(tensor_image_dls())], ids=['DataBlock','TensorDL','worker','clusters','clusters of TensorDL'])
def test_training_samples_without_augmentation(make, how):
    "All of them, in the data set's order"
    learn = new_learner(dls=make())
    i = from_learner(learn, '0', **(dict(ds_idx=0) if how == 'ds_idx' else dict(dl=learn.dls.train)))
    with torch.no_grad(): z = learn.model.eval()[0](IMAGES[:20,None].float()/255).flatten(1)
    torch.testing.assert_close(i.features, z); assert [i.vocab[k] for k in i.targets] == [image_y(k) for k in range(20)]
    assert len(learn.dls.train) == 2 and learn.dls.train.shuffle and learn.dls.train.drop_last
    batches = [b[0] for b in (learn.dls.train.one_batch(),learn.dls.train.one_batch())]
    assert not torch.equal(*batches) and (batches[0] < 0).any() == (batches[0] > 1).any() == True    # augmentation still runs in training

def micro(dls): dls.train = MicroClusterDL(dls.train, 2); return dls

def test_items_and_losses_of_a_data_block():
    learn = new_learner(dls=block_dls())
    i,its = from_learner(learn),Interpretation.from_learner(learn)
    torch.testing.assert_close(i.losses, its.losses)
    for largest in (True,False):
        for a,b in zip(i.top_losses(4, largest, items=True), its.top_losses(4, largest, items=True)): assert list(a) == list(b) or torch.allclose(a, b)
    assert i.top_losses(2, items=True)[2] == [20+k for k in i.top_losses(2)[1]]
    x,p,y,dec,loss = i[[1,4]]
    alike(p, i.probs[[1,4]]); assert torch.equal(y, i.targets[[1,4]]); alike(loss, i.losses[[1,4]])

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(),nn.CrossEntropyLoss()], ids=['flat','torch'])
def test_losses(loss):
    learn = uneven_learner(loss_func=loss)
    i,its = from_learner(learn),Interpretation.from_learner(learn, act=None if isinstance(loss, CrossEntropyLossFlat) else noop)
    torch.testing.assert_close(i.losses, its.losses)
    alike(i.losses.as_subclass(Tensor), F.nll_loss(i.probs.log(), i.targets, reduction='none'))
    for a,b in zip(i.top_losses(5), its.top_losses(5)): torch.testing.assert_close(a, b)
    assert i.losses is i.losses                                                       # one pass

@pytest.mark.parametrize('make', [block_dls,tensor_image_dls])
def test_losses_of_training_samples_are_those_of_the_probabilities(make):
    "Not augmented either"
    i = from_learner(new_learner(dls=make()), ds_idx=0)
    alike(i.losses.as_subclass(Tensor), F.nll_loss(i.probs.log(), i.targets, reduction='none'))

# Texts: a loader that sorts by length

class Bag(nn.Module):
    "Mean of embeddings, padding left out"
    def __init__(self): super().__init__(); self.emb,self.hid,self.out = nn.Embedding(5,4),nn.Linear(4,6),nn.Linear(6,3)
    def forward(self, x): w = (x != 1)[...,None].float(); return self.out(self.hid((self.emb(x)*w).sum(1)/w.sum(1)).tanh())

def text_learner():
    rng = np.random.default_rng(0)
    items = [(' '.join(rng.choice(['red','green','blue'], n)),'cba'[n%3]) for n in rng.integers(1, 30, 24)]
    tfms = [[ItemGetter(0),Tokenizer(BaseTokenizer(), rules=[]),Numericalize(vocab=['xxunk','xxpad','red','green','blue'])],[ItemGetter(1),Categorize()]]
    dls = Datasets(items, tfms, splits=[list(range(16)),list(range(16,24))], dl_type=SortedDL).dataloaders(bs=4, before_batch=pad_input, num_workers=0, device='cpu')
    set_seed(0)
    return new_learner(model=Bag(), dls=dls, metrics=[])

@pytest.mark.parametrize('ds_idx', [0,1])
def test_texts(ds_idx):
    "Features, probabilities and targets belong together, whatever the loader's order"
    learn = text_learner()
    i,m = from_learner(learn, 'out:input', ds_idx=ds_idx),learn.model
    with torch.no_grad():
        rows = [(m.hid(m.emb(x[None]).mean(1)).tanh()[0],m(x[None]).softmax(1)[0],int(y)) for x,y in learn.dls[ds_idx].dataset]
    for z,p,y in zip(i.features, i.probs, i.targets): assert any(torch.allclose(z, a, atol=1e-6) and torch.allclose(p.float(), b, atol=1e-6) and int(y) == c for a,b,c in rows)
    assert sorted(i.targets.tolist()) == sorted(c for *_,c in rows) and i.knn(k=3).among[3] == 16 and i.knn(k=3, max_train=9).among[3] == 9
    i = from_learner(learn, ds_idx=ds_idx, layer='hid')
    assert i.interpolation(points=2).notna().all(axis=None)

def test_losses_of_texts_are_those_of_the_probabilities():
    "In the data set's order, as fastai's interpretations have them, though the loader sorts by length"
    i = from_learner(text_learner(), ds_idx=0)
    alike(i.losses.as_subclass(Tensor), F.nll_loss(i.probs.log(), i.targets, reduction='none'))

def test_classes_of_texts_have_names():
    "The last vocab of several is that of the classes"
    i = from_learner(text_learner(), ds_idx=0)
    assert list(i.vocab) == ['a','b','c']
    assert sorted(t.get_text() for t in i.plot_units().texts) == ['a','b','c']

def test_tables():
    from fastai.tabular.all import Categorify, TabularPandas, tabular_learner
    set_seed(0)
    df = pd.DataFrame({'a': np.random.randn(60), 'cat': np.random.choice(list('pqr'), 60), 'y': np.random.choice(['u','v','w'], 60)})
    dls = TabularPandas(df, [Categorify], cat_names='cat', cont_names='a', y_names='y', y_block=CategoryBlock(), splits=(list(range(40)),list(range(40,60)))).dataloaders(bs=16, val_bs=7, num_workers=0, device='cpu')
    learn = tabular_learner(dls, layers=[8,6], loss_func=CrossEntropyLossFlat()); learn.remove_cb(ProgressCallback)
    i = from_learner(learn)
    assert str(i.site) == 'layers.1.2:input'             # what leaves the ReLU, before batch normalisation
    z,out,y = by_hand(learn.model, dls.valid, get_layer(learn.model, 'layers.1.2'), True)
    alike(i.features, z); alike(i.probs, out.softmax(1)); assert torch.equal(i._labels('it'), y.view(-1).long()) and i.vocab == ['u','v','w']
    assert i.knn(k=1).among[1] == 40 and i.interpolation(points=2).notna().all(axis=None)
    assert {t.get_text() for t in i.plot_pca().texts} == {'u','v','w'}

# Types, sizes, errors

def test_half_precision():
    (x,y),(vx,vy) = data(),data(12, seed=1)
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,3)).half(), dls=tensor_dls((x.half(),y), (vx.half(),vy), bs=8, device='cpu'))
    i = from_learner(learn)
    z,out,_ = by_hand(learn.model, learn.dls.valid, learn.model[3], True)
    assert i.features.dtype == torch.float32 and torch.equal(i.features, z) and z.abs().sum() > 0
    assert math.isfinite(i.calibration().iloc[:,0]['nll']) and i.interpolation(points=2).notna().all(axis=None) and 0 <= i.knn(k=3).error[3] <= 1

def test_double_precision_and_subclasses():
    (x,y),(vx,vy) = data(),data(12, seed=1)
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.Linear(8,3)).double(), dls=tensor_dls((x.double().as_subclass(TensorImageBW),TensorCategory(y)), (vx.double().as_subclass(TensorImageBW),TensorCategory(vy)), bs=8, device='cpu'))
    i = from_learner(learn, '0')
    assert type(i.features) is type(i.targets) is Tensor and torch.equal(i.features, vx.flatten(1))

@pytest.mark.parametrize('fit', [2,5,11])
def test_memory_bounds_the_samples(fit):
    "Rows stay in line, in order, and `seed` draws them"
    learn = uneven_learner()
    z,out,y = by_hand(learn.model, learn.dls.valid, learn.model[0])
    gb = (4*64*fit+3)/1e9
    with pytest.warns(UserWarning, match=f'12 samples of 64 units take .* GB, more than memory={gb:g}: {fit} are kept'): i = from_learner(learn, '0', memory=gb)
    rows = [int((z == f).all(1).nonzero()) for f in i.features]
    assert len(rows) == len(i.probs) == len(i.targets) == fit and rows == sorted(set(rows)) and torch.equal(i.targets, y[rows])
    alike(i.probs, out.softmax(1)[rows])
    drawn = [from_learner(learn, '0', memory=gb, seed=s).features for s in (0,0,1)]
    assert torch.equal(drawn[0], i.features) and torch.equal(drawn[1], i.features) and not torch.equal(drawn[2], i.features)
    with pytest.warns(UserWarning, match=f'{fit} are kept'): assert i.knn(k=1).among[1] == fit   # of the training samples too
    assert i.calibration().iloc[0,0] == (out[rows].argmax(1) != y[rows]).float().mean() and len(i.losses) == 12

def test_samples_that_fit_exactly_are_all_kept():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        assert len(from_learner(uneven_learner(), '0', memory=4*64*12/1e9).features) == 12

def test_memory_draws_evenly():
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(1,2)), dls=tensor_dls((torch.arange(400.)[:,None],torch.arange(400)%2), (torch.arange(400.)[:,None],torch.arange(400)%2), bs=64, device='cpu'))
    kept = torch.cat([from_learner(learn, memory=4*40/1e9, seed=s).features for s in range(10)]).flatten()
    from scipy.stats import kstest
    assert len(kept) == 400 and kstest(kept.numpy()/400, 'uniform').pvalue > .01

class Odd(nn.Module):
    "Layers with what an interpretation cannot take"
    def __init__(self):
        super().__init__()
        for n in ('rows','sizes','nans','inf','never','twice'): setattr(self, n, nn.Identity())
        self.out = nn.Linear(64,3)
    def forward(self, x):
        z = x.flatten(1)
        self.rows(torch.cat([z,z])); self.sizes(z[:,:len(z)]); self.nans(torch.where(z > 1, math.nan, z)); self.inf(z/(z > 0)); self.twice(z); self.twice(2*z)
        return self.out(z)

@pytest.mark.parametrize('kw,error', [(dict(layer='rows'), 'rows gives 10 rows for 5 samples'), (dict(layer='sizes'), 'sizes has 2 units in one batch and 5 in another'), (dict(layer='nans'), r'the features of \d+ of 12 samples at nans hold NaN or infinite'),
                                      (dict(layer='inf'), 'of 12 samples at inf hold NaN or infinite'), (dict(layer='never'), 'the forward pass never reached never'), (dict(layer='neve'), "layer='neve': there is no layer 'neve'; did you mean"), (dict(layer=nn.Conv2d), "there is no layer <class .*Conv2d'>"),
                                      (dict(layer=99), 'there is no layer 99'), (dict(layer='out:output'), "is not 'name', 'name:input' or"), (dict(layer=nn.Linear(2,2)), 'not part of the model'), (dict(layer=lambda m: None), 'returned None'),
                                      (dict(memory=0), 'gigabytes above 0, not 0'), (dict(memory=-1.), 'not -1.0'), (dict(memory='2'), "not '2'"), (dict(memory=None), 'not None'), (dict(memory=math.nan), 'not nan'), (dict(memory=4*64*1.9/1e9), 'not even two samples of 64 units fit')], ids=plain)
def test_clear_errors(kw, error):
    learn = uneven_learner(model=Odd())
    with pytest.raises(ValueError, match=f'LatentInterpretation: .*{error}'): from_learner(learn, **kw)
    assert not hooks(learn.model) and [c.name for c in learn.cbs] == [c.name for c in uneven_learner().cbs]

def test_the_last_pass_of_a_layer_counts():
    i = from_learner(uneven_learner(model=Odd()), 'twice')
    assert torch.equal(i.features, 2*data(12, seed=1)[0].flatten(1))

def test_memory_without_a_bound(): assert len(from_learner(uneven_learner(), memory=math.inf).features) == 12

def test_other_loaders_are_refused():
    with pytest.raises(TypeError, match='fastai DataLoader'): from_learner(uneven_learner(), dl=torch.utils.data.DataLoader([(torch.zeros(1,8,8),0)]))
    class Stream:
        def __iter__(self): return iter([(torch.zeros(1,8,8),0)]*7)
    with pytest.raises(TypeError, match='LatentInterpretation: .*how many samples'): from_learner(uneven_learner(), dl=DataLoader(Stream(), bs=4))

def test_no_linear_layer():
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.act,self.w = nn.ReLU(),nn.Parameter(torch.randn(64,3))
        def forward(self, x): return self.act(x.flatten(1)@self.w)
    with pytest.raises(ValueError, match='LatentInterpretation: layer=None: no layer with weights makes the prediction'): from_learner(uneven_learner(model=Own()))

# Targets that are no labels

LABELLED = {'calibration': {}, 'knn': dict(k=1), 'interpolation': {}, 'plot_histograms': {}, 'plot_units': {}, 'plot_pca': {}, 'plot_tsne': dict(perplexity=2.), 'plot_reliability': {}, 'plot_interpolation': {}}

@pytest.fixture(scope='module')
def unlabelled():
    (x,_),(vx,_) = data(),data(12, seed=1)
    model = lambda k: nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,k))
    fit = lambda y,vy,k,loss: new_learner(model=model(k), dls=tensor_dls((x,y), (vx,vy), bs=8, device='cpu'), loss_func=loss, metrics=[])
    one_hot = fit(F.one_hot(data()[1]), F.one_hot(data(12)[1]), 3, BCEWithLogitsLossFlat())
    learn = uneven_learner()
    two = new_learner(model=model(3), dls=tensor_dls(TensorItems(x, data()[1], data()[1], n_inp=1), TensorItems(vx, data(12)[1], data(12)[1], n_inp=1), bs=8, device='cpu'), loss_func=lambda p,a,b: F.cross_entropy(p, a), metrics=[])
    return {'regression': from_learner(fit(torch.randn(24,1), torch.randn(12,1), 1, MSELossFlat())), 'one-hot': from_learner(one_hot), 'two targets': from_learner(two),
            'no targets': from_learner(learn, dl=learn.dls.valid.new(TensorItems(vx, vocab=['ant','bee','cow'])))}

@pytest.mark.parametrize('what', LABELLED)
@pytest.mark.parametrize('kind,error', [('regression',r'float32 targets of shape \(12, 1\)'), ('one-hot',r'int64 targets of shape \(12, 3\)'), ('two targets','not (tuple|L)'), ('no targets','not (tuple|L|NoneType|list)')])
def test_what_needs_labels_says_so(unlabelled, kind, error, what):
    with pytest.raises(TypeError, match=rf'LatentInterpretation\.{"interpolation" if what == "plot_interpolation" else what} needs one integer label a sample, .*{error}'): getattr(unlabelled[kind], what)(**LABELLED[what])
    assert not plt.get_fignums()                                                      # no empty figure is left

@pytest.mark.parametrize('kind', ['regression','one-hot','two targets','no targets'])
def test_without_labels_class_rows_are_left_out(unlabelled, kind):
    i = unlabelled[kind]
    got = i.characteristics()
    assert got.iloc[:,0].to_dict() == characteristics(i.features) and not any('cw' in r or r == 'intra_inter' for r in got.index) and len(i.features) == 12
    assert i.pca()[0].shape == (12,2)

# Numbers, samples without a label, one output, and other outputs than a tensor

def mlp8(k, *more): set_seed(2); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(), nn.Linear(8,k), *more)
def small_learner(y, vy, model, loss, vocab=None, **kwargs):
    (x,_),(vx,_) = data(len(y)),data(len(vy), seed=1)
    return new_learner(model=model, dls=tensor_dls((x,y), (vx,vy), vocab=vocab, bs=8, val_bs=5, device='cpu'), loss_func=loss, metrics=[], **kwargs)

@pytest.mark.parametrize('what', LABELLED)
@pytest.mark.parametrize('loss', [MSELossFlat, L1LossFlat, lambda: F.mse_loss])
def test_integers_that_are_no_classes(what, loss):
    i = from_learner(small_learner(torch.arange(24)%5, torch.arange(12)%5, mlp8(1), loss()))
    with pytest.raises(TypeError, match=rf'LatentInterpretation\.{"interpolation" if what == "plot_interpolation" else what} needs one integer label a sample, not numbers: no vocabulary'): getattr(i, what)(**LABELLED[what])
    assert i.characteristics().iloc[:,0].to_dict() == characteristics(i.features) and torch.equal(i.probs.float(), i.learn.get_preds()[0])

@pytest.mark.parametrize('ignored', [-100,7])
def test_samples_without_a_label_are_left_out(ignored):
    y,vy = torch.arange(26)%3,torch.arange(13)%3
    has,vhas = torch.arange(26)%4 > 0,torch.arange(13)%5 > 0
    loss = lambda: CrossEntropyLossFlat(ignore_index=ignored)
    learn = small_learner(torch.where(has, y, ignored), torch.where(vhas, vy, ignored), mlp8(3), loss(), vocab=['a','b','c'])
    i,all_z = from_learner(learn),by_hand(learn.model, learn.dls.valid, learn.model[3], True)[0]
    alike(i.features, all_z[vhas]); assert torch.equal(i.targets, vy[vhas]) and len(i.probs) == int(vhas.sum()) and repr(i).endswith('3:input (3 without a label are left out)')
    (x,_),(vx,_) = data(26),data(13, seed=1)
    clean = new_learner(model=learn.model, dls=tensor_dls((x[has],y[has]), (vx[vhas],vy[vhas]), vocab=['a','b','c'], bs=8, val_bs=5, device='cpu'), loss_func=loss(), metrics=[])
    j = from_learner(clean)
    for f in (lambda o: o.characteristics(), lambda o: o.calibration(), lambda o: o.knn(k=(1,3))): pd.testing.assert_frame_equal(f(i), f(j))
    assert points(i.plot_units()) == points(j.plot_units()) and i.plot_tsne(perplexity=3).has_data() and i.plot_reliability().has_data()
    batches = [(a[h],b[h]) for a,b,h in zip(vx.split(5), vy.split(5), vhas.split(5))]
    close(i.interpolation([], points=3)['input'].to_numpy(), slow_interpolation(deepcopy(learn.model).double().eval(), batches, -1, [0,.5,1]), eps=1e-5)
    assert len(i.losses) == 13

def test_a_loader_in_which_no_sample_has_a_label():
    learn = small_learner(torch.arange(26)%3, torch.full((12,), -100), mlp8(3), CrossEntropyLossFlat())
    i = from_learner(learn)
    assert len(i.features) == 12 and 'cw_correlation' not in i.characteristics().index
    with pytest.raises(TypeError, match='no sample has a label'): i.plot_pca()

@pytest.mark.parametrize('labels', [lambda y: y, lambda y: y.bool(), lambda y: y.float(), lambda y: y.float()[:,None]], ids=['int','bool','float','column'])
@pytest.mark.parametrize('loss,last', [(BCEWithLogitsLossFlat,[]), (nn.BCEWithLogitsLoss,[]), (BCELossFlat,[nn.Sigmoid()])], ids=['flat','torch','probabilities'])
def test_one_output_is_two_classes(labels, loss, last):
    y,vy = torch.arange(24)%2,torch.arange(12)%2
    inner = loss()
    fits = inner if isinstance(inner, BaseLoss) else BaseLoss(nn.BCEWithLogitsLoss, is_2d=False, floatify=True)
    i = from_learner(small_learner(labels(y), labels(vy), mlp8(1, *last), fits, vocab=['no','yes']))
    out = by_hand(i.learn.model, i.learn.dls.valid, i.learn.model[3], False)[0].double().flatten()
    p = out.sigmoid()
    alike(i.probs, torch.stack([1-p,p], 1), rtol=1e-5, atol=1e-6)
    found = i.calibration().iloc[:,0]
    close([found.error,found.nll,found.brier], [((p > .5) != vy).double().mean(), F.binary_cross_entropy(p, vy.double()), 2*(p-vy).square().mean()], eps=1e-5)
    assert i.knn(k=1).error.iloc[0] == knn_error(*[o for ds in (0,1) for o in (by_hand(i.learn.model, i.learn.dls[ds].new(shuffle=False, drop_last=False), i.learn.model[3], True)[0],(y,vy)[ds])], k=1)
    got = i.interpolation([], points=2)
    close(got.to_numpy(), found.nll, eps=1e-5)
    assert i.plot_pca().has_data() and i.plot_histograms().has_data()

def test_one_output_that_is_sure():
    i = from_learner(small_learner(torch.arange(24)%2, torch.arange(12)%2, mlp8(1, Scale(1e3)), BCEWithLogitsLossFlat(), vocab=['no','yes']))
    x = i.learn.get_preds(act=noop)[0].double().flatten()
    close(i.calibration().iloc[:,0].nll, F.softplus(torch.where(i.targets == 1, -x, x)).mean(), eps=1e-3)
    assert i.calibration().iloc[:,0].nll < 1e4

class Scale(nn.Module):
    def __init__(self, k): super().__init__(); self.k = k
    def forward(self, x): return self.k*x

class Returns(nn.Module):
    "A network that returns more than a tensor"
    def __init__(self, f): super().__init__(); self.net,self.f = mlp8(3),f
    def forward(self, x): return self.f(self.net(x))
def model_output(z):
    from transformers.modeling_outputs import SequenceClassifierOutput
    return SequenceClassifierOutput(loss=z.sum(), logits=z, hidden_states=(z,z))
OUTPUTS = {'tuple': lambda z: (z,z+1), 'list': lambda z: [z,[z]], 'dict': lambda z: {'logits': z}, 'dict, later': lambda z: {'loss': z.mean(), 'hidden': z[:,None]+1, 'logits': z},
           'named': lambda z: namedtuple('Out', 'logits aux')(z, z), 'ModelOutput': model_output}
@pytest.mark.parametrize('out', OUTPUTS)
def test_models_that_return_more_than_a_tensor(out):
    if out == 'ModelOutput': pytest.importorskip('transformers')
    of = lambda o: o if isinstance(o, Tensor) else o['logits'] if isinstance(o, dict) else o[0]
    loss = lambda o, y: F.cross_entropy(of(o), y)
    y,vy = torch.arange(24)%3,torch.arange(12)%3
    i = from_learner(small_learner(y, vy, Returns(OUTPUTS[out]), loss))
    j = from_learner(small_learner(y, vy, mlp8(3), loss))
    assert torch.equal(i.features, j.features) and torch.equal(i.probs, j.probs) and torch.equal(i.targets, j.targets)
    for f in (lambda o: o.calibration(), lambda o: o.characteristics(), lambda o: o.knn(k=1)): assert np.array_equal(f(i).to_numpy(), f(j).to_numpy())
    close(i.interpolation([], points=3).to_numpy(), j.interpolation([], points=3).to_numpy(), eps=1e-9)

def test_a_model_that_returns_no_tensor():
    learn = small_learner(torch.arange(24)%3, torch.arange(12)%3, Returns(lambda z: ('a',)), lambda o, y: torch.zeros(()))
    with pytest.raises(TypeError, match='LatentInterpretation: .*the model returns tuple, in which there is no tensor of predictions'): from_learner(learn)

# Nothing is changed

def state(learn):
    "All that must stay: weights, gradients, modes, hooks, callbacks, random states, splits"
    dss = [dl.dataset for dl in learn.dls.loaders]
    tfms = [[t.split_idx for t in tl.tfms.fs] + [tl.tfms.split_idx] for ds in dss if isinstance(ds, Datasets) for tl in ds.tls]
    return dict(weights={k: v.tolist() for k,v in learn.model.state_dict().items()}, grads=[None if p.grad is None else p.grad.tolist() for p in learn.model.parameters()], needs=[p.requires_grad for p in learn.model.parameters()],
                modes=[m.training for m in learn.model.modules()], hooks=len(hooks(learn.model)), cbs=[c.name for c in learn.cbs], loss=learn.loss_func, random=random_state(), cudnn=(torch.backends.cudnn.deterministic,torch.backends.cudnn.benchmark),
                rng=[dl.rng.getstate() for dl in learn.dls.loaders], split=[getattr(ds, 'split_idx', None) for ds in dss], tfms=tfms, loaders=[(type(dl),dl.shuffle,dl.drop_last,dl.bs,dl.n,len(dl)) for dl in learn.dls.loaders])

def unchanged(before, after):
    for k in before: assert before[k] == after[k], k

class Fuse(nn.Module):
    "Raises after as many passes as are set"
    left = math.inf
    def forward(self, x):
        self.left -= 1
        if self.left < 0: raise RuntimeError('blown')
        return x

def start(make, mode):
    "A learner that has been trained for a batch, in any mode, somewhere in a stream of random numbers; and its validation"
    learn = new_learner(dls=make(), model=nn.Sequential(*net(), Fuse()))
    def keep_gradients(l): raise CancelBatchException
    learn.fit(1, 1e-2, cbs=Probe(run_valid=False, before_step=keep_gradients))
    learn.model[0][0].weight.requires_grad_(False)
    valid = list(learn.validate())
    learn.model.train(mode != 'eval')
    if mode == 'mixed': learn.model[0][1].eval()
    [random.random(), np.random.rand(), torch.rand(1)]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learn.model.parameters())
    return learn,valid

def blow(f):
    def _inner(l,i):
        l.model[-1].left = 1                                                          # the first pass goes well, the second does not
        with pytest.raises(RuntimeError, match='blown'): f(l, i)
        l.model[-1].left = math.inf
    return _inner

ACTIONS = {'gather': lambda l,i: from_learner(l), 'gather training': lambda l,i: from_learner(l, '0', ds_idx=0), 'a loader': lambda l,i: from_learner(l, dl=l.dls.train, seed=5), 'few': lambda l,i: from_learner(l, '0', memory=4*64*3/1e9),
           'knn': lambda l,i: i.knn(k=1), 'knn, few': lambda l,i: i.knn(k=1, max_train=5, max_n=4), 'interpolation': lambda l,i: i.interpolation(points=3), 'compare': lambda l,i: LatentInterpretation.compare({'a': l, 'b': i}).table,
           'plots': lambda l,i: (i.plot_units(),i.plot_pca(),i.plot_histograms(),i.plot_reliability(),i.plot_tsne(perplexity=2),i.plot_interpolation(points=2),i.characteristics(),i.calibration()),
           'gather, error': blow(lambda l,i: from_learner(l, ds_idx=0)), 'knn, error': blow(lambda l,i: i.knn(k=1)), 'interpolation, error': blow(lambda l,i: i.interpolation(n=20, points=3)), 'compare, error': blow(lambda l,i: LatentInterpretation.compare({'a': i, 'b': l}, dl=l.dls.train))}

@pytest.mark.parametrize('make,mode', [(block_dls,'eval'), (tensor_image_dls,'eval'), (lambda: micro(block_dls()),'eval'), (tensor_image_dls,'train'), (tensor_image_dls,'mixed')], ids=['DataBlock','TensorDL','clusters','train','mixed'])
@pytest.mark.parametrize('action', ACTIONS)
def test_nothing_is_changed(action, make, mode):
    learn,valid = start(make, 'eval')
    i = from_learner(learn, ds_idx=0)
    if mode != 'eval': learn,valid = start(make, mode); i.learn = learn; i.site = trace_layers(learn.model, learn.dls.one_batch()[:1]).activations()
    before = state(learn)
    ACTIONS[action](learn, i)
    unchanged(before, state(learn))
    assert list(learn.validate()) == valid

@pytest.mark.parametrize('ds_idx', [0,1])
def test_losses_change_nothing(ds_idx):
    learn,valid = start(block_dls, 'eval')
    i = from_learner(learn, ds_idx=ds_idx)
    before = state(learn)
    i.losses
    unchanged(before, state(learn))

def test_training_goes_on_as_if_nothing_had_been():
    res = []
    for watch in (False,True):
        learn = new_learner()
        learn.fit(1, 1e-2)
        if watch:
            i = from_learner(learn, ds_idx=0); i.knn(k=1); i.interpolation(points=2); from_learner(learn)
        learn.fit(1, 1e-2)
        res.append((weights(learn), random_state(), learn.recorder.values[0][:3]))
    assert same(res[0][0], res[1][0]) and res[0][1:] == res[1][1:]

@pytest.mark.parametrize('action', ['gather','knn','losses'])
def test_what_the_last_fit_recorded_stays(action):
    "`get_preds` calls `before_fit`, in which fastai's recorder forgets"
    learn = uneven_learner()
    i = from_learner(learn)
    learn.fit(2, 1e-2, cbs=LatentMonitor(1))
    kept = lambda: deepcopy({k: getattr(learn.recorder, k) for k in ('losses','values','iters','lrs','terms','metric_names')})
    before = kept()
    {'gather': lambda: from_learner(learn), 'knn': lambda: i.knn(k=1), 'losses': lambda: i.losses}[action]()
    assert str(kept()) == str(before)
    assert [len(a.lines[0].get_xdata()) for a in learn.recorder.plot_latent()] == [6,4,4]

def test_with_fastais_progress_bar():
    learn = Learner(tensor_dls(data(), data(12, seed=1), bs=8, device='cpu'), net(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(1, 1e-2, cbs=LatentMonitor(1)); i = from_learner(learn); i.losses; i.knn(1); i.interpolation(points=2)
    assert learn.progress in learn.cbs and len(i.features) == 12

# Measures are those of metrics.py

def test_measures(interp):
    learn = interp.learn
    z,out,y = by_hand(learn.model, learn.dls.valid, learn.model[5], True)
    p = out.softmax(1)
    got = interp.characteristics()
    assert list(got.columns) == ['5:input'] and got['5:input'].to_dict() == characteristics(z, y)
    want = dict(error=(p.argmax(1) != y).double().mean().item(), confidence=p.max(1).values.double().mean().item(), nll=negative_log_likelihood(p, y), brier=brier_score(p, y), ece=expected_calibration_error(p, y), adaptive_ece=expected_calibration_error(p, y, adaptive=True))
    got = interp.calibration()
    assert list(got.columns) == ['5:input'] and list(got.index) == list(want); close(got['5:input'].tolist(), list(want.values()), eps=1e-6)
    assert interp.calibration(4).loc['ece'].item() == pytest.approx(expected_calibration_error(p, y, 4), abs=1e-6) and interp.calibration(3).loc['adaptive_ece'].item() == pytest.approx(expected_calibration_error(p, y, 3, True), abs=1e-6)
    valid = learn.validate()
    close([got.loc['nll'].item(),1-got.loc['error'].item()], valid, eps=1e-5)

def test_characteristics_of_some_units():
    i = from_learner(uneven_learner(), '0')
    with pytest.warns(UserWarning, match='over 10 of 64 units'): got = i.characteristics(max_units=10)
    assert got.iloc[:,0].to_dict() == characteristics(i.features, i.targets, 10) != i.characteristics().iloc[:,0].to_dict()

def test_labels_of_any_shape():
    "(N, 1) and small integers too"
    a = random_interp(30, 3)
    b = made(a.features, a.targets[:,None].to(torch.int8), probs=a.probs)
    assert a.characteristics().equals(b.characteristics()) and a.calibration().equals(b.calibration())
    assert [t.get_position() for t in a.plot_units().texts] == [t.get_position() for t in b.plot_units().texts]

@pytest.mark.parametrize('layer', [None,'0'])
def test_knn(layer):
    learn = uneven_learner()
    i = from_learner(learn, layer)
    at,input = (learn.model[5],True) if layer is None else (learn.model[0],False)
    z,_,y = by_hand(learn.model, learn.dls.train.new(shuffle=False, drop_last=False), at, input)
    v,_,w = by_hand(learn.model, learn.dls.valid, at, input)
    got,want = i.knn(),knn_error(z, y, v, w, (1,5,20))
    assert got.index.tolist() == [1,5,20] and got.index.name == 'k' and got.error.to_dict() == want and got.of.unique().tolist() == [12] and got.among.unique().tolist() == [26]
    for k in (3,[3],(3,)): assert i.knn(k).error.to_dict() == {3: knn_error(z, y, v, w, 3)}
    slow = lambda k,m: Counter(y[[j for _,j in sorted((float((a-m).norm()),j) for j,a in enumerate(z))[:k]]].tolist())
    assert want[1] == sum(slow(1, m).most_common(1)[0][0] != int(l) for m,l in zip(v, w))/12

def test_knn_of_some_samples():
    learn = uneven_learner()
    i = from_learner(learn, '1')
    z,_,y = by_hand(learn.model, learn.dls.train.new(shuffle=False, drop_last=False), learn.model[1])
    got = i.knn((1,3), max_train=10, max_n=7)
    assert got.of.tolist() == [7,7] and got.among.tolist() == [10,10]
    pick,rows = np.random.default_rng(0).permutation(26)[:10],np.random.default_rng(0).permutation(12)[:7]
    assert got.error.to_dict() == knn_error(z[pick], y[pick], i.features[rows], i.targets[rows], (1,3))
    whole = i.knn((1,3))
    for kw in (dict(max_train=None, max_n=None), dict(max_train=26, max_n=12), dict(max_train=99, max_n=99)): assert i.knn((1,3), **kw).equals(whole)
    assert i.knn((1,3), max_train=10, max_n=7).equals(got)
    for bad in (0,27,1.5,'1'):
        with pytest.raises(ValueError, match='`k` must be whole numbers from 1 to 26'): i.knn(bad)
    with pytest.raises(ValueError, match='sampled_dl: `n` must be a whole number above 0'): i.knn(1, max_train=0)

def test_a_k_given_twice_counts_once(interp): assert interp.knn((3,3)).error.iloc[0] == interp.knn(3).error.iloc[0]

def test_neighbours_of_training_samples_include_themselves():
    i = from_learner(uneven_learner(), '1', ds_idx=0)
    assert i.knn(1).error[1] == 0 and i.knn(1).of[1] == 26

# Interpolation

def tiny(): set_seed(4); return nn.Sequential(nn.Flatten(), nn.Linear(64,7), nn.ReLU(), nn.Linear(7,6), nn.Tanh(), nn.Linear(6,3))

def tiny_interp(val_bs=5, **kwargs):
    dls = tensor_dls(data(), data(12, seed=1), bs=8, val_bs=val_bs, device='cpu')
    return from_learner(new_learner(model=tiny(), dls=dls, **kwargs))

def slow_interpolation(model, batches, after, lams):
    "NLL of the mixed target, a pair at a time; `after` is the last layer before the mix, -1 for the input"
    res = []
    for lam in lams:
        nlls = []
        for x,y in batches:
            for j in range(len(x)):
                run = lambda z: model[:after+1](z) if after >= 0 else z
                z = lam*run(x[j:j+1].double()) + (1-lam)*run(x[j-1:j] .double() if j else x[-1:].double())
                logp = model[after+1:](z).log_softmax(1)[0]
                nlls.append(-(lam*logp[y[j]] + (1-lam)*logp[y[j-1]]).item())
        res.append(np.mean(nlls))
    return res

@pytest.mark.parametrize('val_bs,used', [(5,12), (24,12), (11,11), (2,12)])
def test_interpolation_by_hand(val_bs, used):
    "Each sample is mixed with the one before in its batch; a batch of one has no pair"
    i = tiny_interp(val_bs)
    x,y = i.learn.dls.valid_ds.tensors
    batches = [b for b in zip(x.split(val_bs), y.split(val_bs)) if len(b[0]) > 1]
    assert sum(len(b[0]) for b in batches) == used
    lams,got = np.linspace(0, 1, 4),i.interpolation(points=4)
    assert got.columns.tolist() == [str(s) for s in mixing_sites(i.learn.model, (x,), 'all')] == ['input','2','4'] and got.index.name == 'λ'
    close(got.index.to_numpy(), lams, eps=1e-12)
    model = deepcopy(i.learn.model).double().eval()
    for place,after in (('input',-1),('2',2),('4',4)): close(got[place].to_numpy(), slow_interpolation(model, batches, after, lams), eps=1e-5)
    plain = sum(F.cross_entropy(i.learn.model(a), b, reduction='sum').item() for a,b in batches)/used
    close(got.iloc[[0,-1]].to_numpy(), plain, eps=1e-6)                               # at the ends nothing is mixed
    if val_bs == 2: close(got.to_numpy(), got.to_numpy()[::-1], eps=1e-6)             # each is the other's partner: λ and 1−λ are the same pairs

class Sum(Module):
    "Of two inputs"
    def __init__(self): self.a,self.b,self.head = nn.Linear(5,4),nn.Linear(3,4),nn.Linear(4,3)
    def forward(self, a, b): return self.head((self.a(a) + self.b(b)).relu())

@pytest.mark.parametrize('two', [False,True], ids=['one input','two inputs'])
def test_plain_loaders(two):
    "Of fastai's own loader over a list of items all but the last are inputs, as fastai's learner has it"
    set_seed(0)
    xb,y,model = [torch.randn(24,5),torch.randn(24,3)][:1+two],torch.arange(24) % 3,Sum() if two else nn.Sequential(nn.Linear(5,4), nn.ReLU(), nn.Linear(4,3))
    plain = DataLoaders(*[DataLoader(list(zip(*xb, y)), bs=8)]*2, device='cpu')
    items = TensorItems(*xb, y, vocab=range(3))
    known = DataLoaders(*[TensorDL(items, bs=8)]*2, device='cpu')
    a,b = (LatentInterpretation.from_learner(new_learner(model=model, dls=d)) for d in (plain,known))
    assert torch.equal(a.features, b.features) and str(a.site) == str(b.site) and torch.equal(a.targets, b.targets)
    pd.testing.assert_frame_equal(a.interpolation(points=3), b.interpolation(points=3))
    assert len(a.plot_interpolation(points=3).lines) == len(b.interpolation(points=3).columns)

@pytest.mark.parametrize('layers,places', [(None,['input','2','4']), ('3',['input','3']), (['1','4'],['input','1','4']), (nn.Linear,['input','1','3','5']), ('5:input',['input','5:input']), ([],['input'])], ids=plain)
def test_interpolation_at_any_place(layers, places):
    i = tiny_interp()
    got = i.interpolation(layers, points=3)
    assert got.columns.tolist() == places and got.index.tolist() == [0,.5,1]
    batches,model = list(i.learn.dls.valid),deepcopy(i.learn.model).double().eval()
    for p in places[1:]: close(got[p].to_numpy(), slow_interpolation(model, batches, 4 if ':' in p else int(p), [0,.5,1]), eps=1e-5)
    close(got.iloc[0].to_numpy(), got.iloc[0,0], eps=1e-9)

def test_interpolation_of_some_samples():
    i = tiny_interp()
    x,y = i.learn.dls.valid_ds.tensors
    pick = np.random.default_rng(0).permutation(12)[:7]
    close(i.interpolation(n=7, points=3)['2'].to_numpy(), slow_interpolation(deepcopy(i.learn.model).double().eval(), list(zip(x[pick].split(5), y[pick].split(5))), 2, [0,.5,1]), eps=1e-5)
    assert i.interpolation(n=7, points=3).equals(i.interpolation(n=7, points=3)) and i.interpolation(n=99, points=2).equals(i.interpolation(points=2))
    with pytest.raises(ValueError, match='there is no layer'): i.interpolation('nowhere')

def test_interpolation_takes_training_samples_without_augmentation():
    learn = new_learner(dls=block_dls())
    i = from_learner(learn, ds_idx=0)
    x,y = IMAGES[:20,None].float()/255,i.targets
    with torch.no_grad(): want = np.mean([F.cross_entropy(learn.model.eval()(a), b, reduction='sum').item() for a,b in [(x,y)]])/20
    close(i.interpolation(points=2).to_numpy(), want, eps=1e-5)

def test_interpolation_with_an_act_of_its_own():
    i = tiny_interp()
    j = from_learner(i.learn, act=lambda o: (o/2).softmax(1))
    half = deepcopy(i.learn.model); half[5].weight.data /= 2; half[5].bias.data /= 2
    i.learn.model = half
    close(i.interpolation(points=2).iloc[:,1:].to_numpy(), i.interpolation(points=2).iloc[0,1], eps=1e-6)
    close(j.probs.numpy(), half(data(12, seed=1)[0]).softmax(1).detach().numpy(), eps=1e-6)

@pytest.mark.parametrize('val_bs,n', [(5,1), (1,500)])
def test_interpolation_without_pairs(val_bs, n):
    with pytest.raises(ValueError, match='interpolation'): tiny_interp(val_bs).interpolation(n=n)

# Plots of one interpretation

PLOTS = {'histograms': lambda i,**k: i.plot_histograms(**k), 'units': lambda i,**k: i.plot_units(**k), 'pca': lambda i,**k: i.plot_pca(**k), 'tsne': lambda i,**k: i.plot_tsne(perplexity=3, **k), 'reliability': lambda i,**k: i.plot_reliability(**k),
         'interpolation': lambda i,**k: i.plot_interpolation(points=2, **k), 'points': lambda i,**k: plot_points(i.features[:,:2], i.targets, **k), 'class_histograms': lambda i,**k: plot_class_histograms(i.features[:,0], i.targets, **k),
         'lines': lambda i,**k: plot_lines([0,1], {'a': [1,2]}, **k), 'bins': lambda i,**k: plot_bins(calibration_bins(i.probs, i.targets), **k), 'surface': lambda i,**k: plot_surface(np.full((9,3), 1/3), (0,1), (0,1), **k),
         'compared': lambda i,**k: LatentInterpretation.compare({'a': i, 'b': i}).plot(**k)}

@pytest.mark.parametrize('name', PLOTS)
def test_axes_given_or_new(interp, name):
    ax = PLOTS[name](interp, figsize=(5.5,3.25))
    assert isinstance(ax, mpl.axes.Axes) and len(plt.get_fignums()) == 1 and ax.figure.get_size_inches().tolist() == [5.5,3.25] and ax.has_data()
    fig,axs = plt.subplots(1, 2)
    assert PLOTS[name](interp, ax=axs[1]) is axs[1] and not axs[0].has_data() and axs[1].has_data() and PLOTS[name](interp, ax=axs[:1]) is axs[0] and len(plt.get_fignums()) == 2
    plt.close('all')
    ax = PLOTS[name](interp)
    assert isinstance(ax, mpl.axes.Axes) and len(plt.get_fignums()) == 1
    with pytest.raises(ValueError, match='1 axes are needed, and `ax` holds 2'): PLOTS[name](interp, ax=list(axs))
    ax.figure.canvas.draw()                                                           # what is wrong with an artist shows only here

def test_histograms(interp):
    z,y = interp.features.numpy(),interp.targets.numpy()
    for unit,u in ((None,z.var(0).argmax()), (3,3), (-1,7), (np.int64(2),2)):
        ax = interp.plot_histograms(unit, bins=9)
        filled = [p for p in ax.patches if p.get_fill()]
        assert ax.get_title() == f'unit {u}' and len(filled) == 3 and len(ax.patches) == 6
        edges = np.histogram_bin_edges(z[:,u], 9)
        for k,p in enumerate(filled):
            assert p.get_data().values.tolist() == np.histogram(z[y == k,u], edges)[0].tolist() and mpl.colors.to_hex(p.get_facecolor()) == colors_for(3)[k].lower()
            close(p.get_data().edges, edges, eps=1e-6)
        assert sum(p.get_data().values.sum() for p in filled) == 12 and [t.get_text() for t in ax.get_legend().get_texts()] == ['ant','bee','cow']
    assert interp.plot_histograms(legend=False).get_legend() is None
    for bad in (8,-9,1.,'0',None.__class__):
        with pytest.raises(ValueError, match=r'LatentInterpretation: there is no unit .*; 5:input has 8, 0 to 7'): interp.plot_histograms(bad)

def test_units(interp):
    z,y = interp.features,interp.targets
    a,b = z.var(0).topk(2).indices.tolist()
    for args,(i,j) in (((),(a,b)), ((3,5),(3,5)), ((-1,0),(7,0)), ((a,),(a,b)), ((b,),(b,a)), ((None,a),(b,a)), ((None,b),(a,b)), ((None,a-8),(b,a)), ((4,4),(4,4))):
        ax = interp.plot_units(*args)
        assert points(ax) == expected(z[:,[i,j]], y, 3) and (ax.get_xlabel(),ax.get_ylabel()) == (f'unit {i}',f'unit {j}')
        assert [t.get_text() for t in ax.texts] == ['ant','bee','cow']
        for k,t in enumerate(ax.texts): close(t.get_position(), np.median(z[y == k][:,[i,j]].numpy(), axis=0), eps=1e-6)
    ax = interp.plot_units(names='legend', s=9)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['ant','bee','cow'] and not ax.texts and ax.collections[0].get_sizes().tolist() == [9]
    assert [mpl.colors.to_hex(h.get_facecolor()[0]) for h in ax.get_legend().legend_handles] == [c.lower() for c in colors_for(3)]
    ax = interp.plot_units(names='', max_points=5)
    assert not ax.texts and ax.get_legend() is None and ax.get_title() == '5 of 12 samples' and points(ax) <= expected(z[:,[a,b]], y, 3) and points(ax).total() == 5
    for bad in ((8,), (0,8), (None,'a')):
        with pytest.raises(ValueError, match='there is no unit'): interp.plot_units(*bad)
    one = made(z[:,:1], y)
    with pytest.raises(ValueError, match='has one unit only'): one.plot_units()
    assert one.plot_histograms().get_title() == 'unit 0'

@pytest.mark.parametrize('dims', [2,3])
def test_pca(dims):
    i = random_interp(40, 3, 7)
    z = i.features.double().numpy(); z = z - z.mean(0)
    u,s,vt = np.linalg.svd(z, full_matrices=False)
    xy,share = i.pca(dims)
    want = u[:,:dims]*s[:dims]
    close(np.abs((xy*want).sum(0)), (want**2).sum(0), eps=1e-2); close(np.abs(xy), np.abs(want), eps=1e-3); close(share, (s**2/(s**2).sum())[:dims], eps=1e-5)
    ax = i.plot_pca(dims)
    got = np.stack(ax.collections[0]._offsets3d, 1) if dims == 3 else ax.collections[0].get_offsets().data
    close(np.sort(got, 0), np.sort(xy, 0), eps=1e-5)
    assert [getattr(ax, f'get_{a}label')() for a in 'xyz'[:dims]] == [f'component {n+1} ({100*share[n]:.0f}%)' for n in range(dims)] and [t.get_text() for t in ax.texts] == ['0','1','2']
    if dims == 2: assert points(ax) == expected(xy, i.targets, 3)
    else:
        assert ax.name == '3d' and [mpl.colors.to_hex(c) for c in ax.collections[0]._facecolors] == [colors_for(3)[int(i.targets[np.abs(xy-o).sum(1).argmin()])].lower() for o in got]
        fig = plt.figure(); mine = fig.add_subplot(projection='3d')
        assert i.plot_pca(3, ax=mine) is mine and i.plot_pca(3, names='legend', figsize=(3,3)).get_legend() is not None
        ax.figure.canvas.draw()

@pytest.mark.parametrize('scale,shift', [(1.,1e4), (1e20,0), (1e-20,0), (1e10,1e12)], ids=str)
def test_pca_and_busiest_units_of_large_or_shifted_features(interp, scale, shift):
    "By a singular value decomposition in float64; scikit-learn's own way is by products of features"
    i = copy(interp)
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))*tensor([1.,2,3,4,5])
    i.features = z*scale + shift
    d = i.features.double() - i.features.double().mean(0)
    u,s,_ = torch.linalg.svd(d, full_matrices=False)
    xy,share = i.pca(2)
    np.testing.assert_allclose(np.abs(xy)/scale, (u*s)[:,:2].abs().numpy()/scale, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(share, (s.square()/s.square().sum())[:2].numpy(), rtol=1e-3)
    assert i._busiest(5) == [4,3,2,1,0]

@pytest.mark.parametrize('units,n', [(1,10),(3,2),(2,10)])
def test_pca_of_less_than_that(units, n):
    "Missing components are 0"
    i = made(torch.randn(n, units), torch.arange(n)%2)
    xy,share = i.pca(3)
    assert xy.shape == (n,3) and (xy[:,min(units,n):] == 0).all() and np.isfinite(xy).all() and (share[min(units,n):] == 0).all() and np.isfinite(share).all()
    assert i.plot_pca().has_data() and i.plot_pca(3).has_data()

def test_pca_of_constants():
    i = made(torch.ones(6,4), torch.arange(6)%2)
    assert (i.pca()[0] == 0).all() and (i.pca()[1] == 0).all() and i.plot_pca().get_xlabel() == 'component 1 (0%)'
    i.plot_units(); i.plot_histograms().figure.canvas.draw()

@pytest.mark.parametrize('dims', [1,4,'2',None])
def test_pca_of_other_dimensions(interp, dims):
    with pytest.raises(ValueError, match='LatentInterpretation.plot_pca: `dims` is 2 or 3'): interp.plot_pca(dims)

@pytest.mark.parametrize('max_n', [None,40,99,13])
def test_tsne_is_given_the_right_samples(monkeypatch, max_n):
    import sklearn.manifold
    given = {}
    class Fake:
        def __init__(self, **kw): given.update(kw)
        def fit_transform(self, z): given['z'] = z; return z[:,:2]
    monkeypatch.setattr(sklearn.manifold, 'TSNE', Fake)
    i = random_interp(40, 3)
    ax,n = i.plot_tsne(max_n, perplexity=7.),13 if max_n == 13 else 40
    assert given['perplexity'] == 7 and given['random_state'] == 0 and given['z'].shape == (n,6) and {tuple(r) for r in given['z']} <= {tuple(r) for r in i.features.numpy()}
    assert points(ax) <= expected(i.features[:,:2], i.targets, 3) and points(ax).total() == n and ax.get_title() == ('13 of 40 samples' if n == 13 else '')
    assert not len(ax.get_xticks()) and not len(ax.get_yticks()) and [t.get_text() for t in ax.texts] == ['0','1','2']

def test_tsne():
    "Two heaps stay two heaps; the same again for the same seed; a random state that is left alone"
    g = torch.Generator().manual_seed(0)
    i = made(torch.cat([torch.randn(15,5, generator=g),torch.randn(15,5, generator=g)+20]), torch.arange(30)//15)
    before = random_state()
    a,b = i.plot_tsne(perplexity=5),i.plot_tsne(perplexity=5)
    assert points(a) == points(b) and random_state() == before
    xy,c = np.array([p[:2] for p in points(a)]),np.array([p[2] for p in points(a)])
    near = [c[np.argsort(((xy-o)**2).sum(1))[1]] for o in xy]
    assert (np.array(near) == c).all()
    for kw,n in ((dict(),30), (dict(perplexity=30),30), (dict(max_n=9, perplexity=9),9)):
        with pytest.raises(ValueError, match=f'LatentInterpretation.plot_tsne: `perplexity` must be below the number of samples, {n}, and is'): i.plot_tsne(**kw)

# `max_points` is one of `plot_points`'s arguments, and is given twice
def test_tsne_takes_all_arguments_for_points(): assert random_interp(20, 2).plot_tsne(perplexity=3, max_points=7).collections[0].get_offsets().shape == (7,2)

# without a check it is matplotlib's "multiple values for argument 's'"
def test_space_needs_axes_in_space():
    i,ax = random_interp(20, 2),plt.subplots()[1]
    for f in (lambda: i.plot_pca(3, ax=ax), lambda: plot_points(i.features[:,:3], i.targets, ax=ax)):
        with pytest.raises(ValueError, match='3d'): f()

@pytest.mark.parametrize('kw', [{}, dict(n_bins=5), dict(n_bins=4, adaptive=True)], ids=plain)
def test_reliability(kw):
    i = random_interp(200, 4)
    ax,bins = i.plot_reliability(**kw),calibration_bins(i.probs, i.targets, **kw)
    dots,gaps = ax.collections[-1],ax.collections[0]
    close(dots.get_offsets().data, bins[['confidence','accuracy']].to_numpy(), eps=1e-9); close(dots.get_sizes(), 10+300*bins['count']/200, eps=1e-9)
    close(np.array([s for s in gaps.get_segments()]), np.stack([bins[['confidence','confidence']], bins[['confidence','accuracy']]], 1), eps=1e-9)
    assert ax.lines[0].get_xydata().tolist() == [[0,0],[1,1]] and ax.texts[0].get_text() == f'ECE {expected_calibration_error(i.probs, i.targets, **kw):.3f}' and (ax.get_xlabel(),ax.get_ylabel()) == ('confidence','accuracy')
    with pytest.raises(ValueError, match='n_bins'): i.plot_reliability(0)

def test_interpolation_plot(interp):
    table = interp.interpolation('4', n=8, points=5)
    ax = interp.plot_interpolation('4', n=8, points=5)
    assert [l.get_label() for l in ax.lines] == list(table.columns) == ['input','4'] and (ax.get_xlabel(),ax.get_ylabel()) == ('λ','NLL')
    for l in ax.lines: close(l.get_xdata(), table.index, eps=1e-12); close(l.get_ydata(), table[l.get_label()], eps=1e-12)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['input','4']

NAMES = [f'class {k}' for k in range(12)]
@pytest.mark.parametrize('labels,vocab', [([0,2],['a','b','c']), ([0,2],None), ([1],['a','b','c']), ([0],['a']), (range(10),NAMES[:10]), (range(12),None), ([3,11],NAMES), ([2,5],CategoryMap(NAMES[:8], sort=False))], ids=plain)
def test_classes_of_any_number(labels, vocab):
    "A class keeps its name and colour, whichever others are there"
    labels = list(labels)
    g = torch.Generator().manual_seed(0)
    z,y = torch.randn(60,3, generator=g),tensor([labels[k%len(labels)] for k in range(60)])
    n = max(labels)+1 if vocab is None else len(vocab)
    names = [str(k if vocab is None else vocab[k]) for k in labels]
    probs = torch.rand(60, max(2, n), generator=g).softmax(1)
    i = made(z, y, vocab, probs)
    assert len(set(colors_for(n))) == n
    for ax,xy in ((i.plot_units(0, 1),z[:,:2]), (i.plot_pca(),i.pca()[0])): assert [t.get_text() for t in ax.texts] == names and points(ax) == expected(xy, y, n)
    ax = i.plot_histograms(1, bins=5)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == names and [mpl.colors.to_hex(p.get_facecolor()) for p in ax.patches if p.get_fill()] == [colors_for(n)[k].lower() for k in labels]
    assert [t.get_text() for t in i.plot_units(names='legend').get_legend().get_texts()] == names and i.plot_reliability().has_data()
    assert len(i.calibration()) == 6 and i.characteristics().loc['intra_inter'].isna().item() == (len(labels) == 1)
    ax.figure.canvas.draw()

# Comparisons

@pytest.fixture(scope='module')
def comp():
    a,b = uneven_learner(),uneven_learner(seed=1)
    return LatentInterpretation.compare({'baseline': a, 'mine': from_learner(b), 'third': uneven_learner(seed=2)})

def test_compare(comp):
    assert isinstance(comp, LatentComparison) and list(comp.interps) == ['baseline','mine','third']
    for k,i in comp.interps.items():
        want = pd.concat([i.characteristics(),i.calibration()]).iloc[:,0]
        assert comp.table[k].equals(want.rename(k)) and comp.characteristics()[k].tolist() == i.characteristics().iloc[:,0].tolist() and comp.calibration(n_bins=4)[k].tolist() == i.calibration(4).iloc[:,0].tolist()
        assert comp.knn(k=(1,3), max_train=20)[k].tolist() == i.knn((1,3), 20).error.tolist() and comp.interpolation(points=2)[k].equals(i.interpolation(points=2))
    assert list(comp.table.columns) == ['baseline','mine','third'] and list(comp.table.index) == [*comp.interps['mine'].characteristics().index,'error','confidence','nll','brier','ece','adaptive_ece']
    html = comp._repr_html_()
    assert '<table' in html and all(k in html for k in comp.table.columns) and all(k in html for k in comp.table.index) and f"{comp.table.loc['nll','mine']:.3f}" in html and 'baseline' in repr(comp)

def test_compare_takes_a_layer_and_a_loader():
    a,b = uneven_learner(),uneven_learner(seed=1)
    i = from_learner(b)
    c = LatentInterpretation.compare({'a': a, 'b': i}, layer='4', dl=a.dls.train, memory=1., seed=3)
    assert len(c.interps['a'].features) == 26 and str(c.interps['a'].site) == '4' and c.interps['a'].seed == 3 and c.interps['b'] is i
    with pytest.raises(ValueError, match='LatentInterpretation.compare: there is no learner to compare'): LatentInterpretation.compare({})
    with pytest.raises(ValueError, match='there is no layer'): LatentInterpretation.compare({'a': a}, layer='nowhere')

PANELS = {'histograms': {}, 'units': {}, 'pca': {}, 'tsne': dict(perplexity=3), 'reliability': {}}
@pytest.mark.parametrize('name', PANELS)
def test_panels(comp, name):
    axs = getattr(comp, f'plot_{name}')(figsize=(9,3), **PANELS[name])
    assert axs.shape == (3,) and len(plt.get_fignums()) == 1 and axs[0].figure.get_size_inches().tolist() == [9,3]
    for ax,(k,i) in zip(axs, comp.interps.items()):
        one = getattr(i, f'plot_{name}')(**PANELS[name])
        assert ax.get_title().split('\n')[0] == k and ax.get_title() == '\n'.join(filter(None, [k,one.get_title()])) and (ax.get_xlabel(),ax.get_ylabel()) == (one.get_xlabel(),one.get_ylabel())
        if name == 'histograms': assert [p.get_data().values.tolist() for p in ax.patches] == [p.get_data().values.tolist() for p in one.patches] and (ax.get_legend() is not None) == (k == 'baseline')
        else: assert np.array_equal(ax.collections[-1].get_offsets().data, one.collections[-1].get_offsets().data)
    fig,grid = plt.subplots(2, 3)
    assert getattr(comp, f'plot_{name}')(ax=grid[1], **PANELS[name]).tolist() == grid[1].tolist()
    with pytest.raises(ValueError, match='3 axes are needed, and `ax` holds 1'): getattr(comp, f'plot_{name}')(ax=grid[0,0], **PANELS[name])

def test_panels_take_arguments(comp):
    assert [a.get_title() for a in comp.plot_histograms(2, bins=3)] == ['baseline\nunit 2','mine\nunit 2','third\nunit 2'] and [a.get_xlabel() for a in comp.plot_units(1, 4)] == ['unit 1']*3 and [a.name for a in comp.plot_pca(3)] == ['3d']*3
    assert len({a.get_subplotspec().colspan.start for a in comp.plot_units(ncols=2)}) == 2 and len(comp.plot_reliability(ncols=1)) == 3
    assert [a.get_title() for a in comp.plot_tsne(perplexity=2, max_n=6)] == [f'{k}\n6 of 12 samples' for k in comp.interps] and len(comp.plot_reliability(n_bins=2)[0].collections[-1].get_offsets()) <= 2

# `legend` is given twice
@pytest.mark.parametrize('legend', [True,False])
def test_panels_of_histograms_take_a_legend(comp, legend): assert [a.get_legend() is not None for a in comp.plot_histograms(legend=legend)][0] == legend

def test_panels_of_interpolation(comp):
    axs,table = comp.plot_interpolation(layers=['2','4'], n=8, points=3, figsize=(8,2)),comp.interpolation(layers=['2','4'], n=8, points=3)
    assert [a.get_title() for a in axs] == ['input','2','4'] and axs[0].figure.get_size_inches().tolist() == [8,2] and list(table.columns) == [(k,p) for k in comp.interps for p in ('input','2','4')]
    for a in axs:
        assert [l.get_label() for l in a.lines] == list(comp.interps) and [l.get_color().lower() for l in a.lines] == [c.lower() for c in methods_colors(comp.interps).values()]
        for l in a.lines: close(l.get_ydata(), table[l.get_label(),a.get_title()], eps=1e-12)
    assert [a.get_ylabel() for a in axs] == ['NLL','',''] and [a.get_legend() is not None for a in axs] == [True,False,False]
    fig,grid = plt.subplots(1, 2)
    assert comp.plot_interpolation(layers='4', n=8, points=2, ax=grid).tolist() == grid.tolist()
    with pytest.raises(ValueError, match='3 axes are needed'): comp.plot_interpolation(layers=['2','4'], n=8, points=2, ax=grid)

def test_interpolation_of_networks_with_other_layers():
    "A place that only one of them has gets its line alone"
    c = LatentInterpretation.compare({'a': uneven_learner(model=tiny()), 'b': uneven_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,3)))})
    axs = c.plot_interpolation(points=2)
    assert {a.get_title(): [l.get_label() for l in a.lines] for a in axs} == {'input': ['a','b'], '2': ['a'], '4': ['a']}

def test_relative_plot(comp):
    ax,table = comp.plot(figsize=(5,4)),comp.table
    rows = [r for r in table.index if table.loc[r,'baseline'] > 0]
    assert [t.get_text() for t in ax.get_yticklabels()] == rows and len(rows) > 10 and ax.get_xscale() == 'log' and ax.get_xlabel() == 'relative to baseline'
    assert [c.get_label() for c in ax.collections] == list(comp.interps) == [t.get_text() for t in ax.get_legend().get_texts()]
    for c in ax.collections:
        close(c.get_offsets().data[:,0], (table[c.get_label()]/table['baseline'])[rows], eps=1e-9); assert c.get_offsets().data[:,1].tolist() == list(range(len(rows)))
    ax.figure.canvas.draw()
    assert '×' in ax.xaxis.get_major_formatter()(2, 0) and isinstance(LatentComparison({'one': comp.interps['mine']}).plot(), mpl.axes.Axes)

def test_names_of_any_kind():
    i = random_interp(20, 3)
    c = LatentInterpretation.compare({1: i, .5: i, 'a': i})
    assert [a.get_title() for a in c.plot_units()] == ['1','0.5','a'] and list(c.table.columns) == [1,.5,'a'] and c.plot().has_data()

def test_comparison_of_one_class():
    c = LatentComparison({'a': random_interp(20, 1), 'b': random_interp(20, 1, seed=1)})
    assert c.table.loc['intra_inter'].isna().all() and c.plot().has_data() and '<table' in c._repr_html_()
    for f in (c.plot_units,c.plot_histograms,c.plot_pca,c.plot_reliability): assert all(a.has_data() for a in f())
    plt.gcf().canvas.draw()

def test_comparison_of_regressions(unlabelled):
    c = LatentComparison({'a': unlabelled['regression'], 'b': unlabelled['regression']})
    assert len(c.characteristics()) == 5 and list(c.characteristics().columns) == ['a','b']
    with pytest.raises(TypeError, match='LatentInterpretation.plot_units'): c.plot_units()

# Memory

def test_memory_of_large_features():
    "60,000 × 512: less than 1 GB beside the features, for characteristics, principal components and neighbours"
    code = '''
import resource, sys, warnings; warnings.filterwarnings('ignore')
import matplotlib; matplotlib.use('agg')
import torch; torch.set_num_threads(1)
from latentreg_fastai.all import *
import sklearn.decomposition
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
g = torch.Generator().manual_seed(0)
z = torch.empty(60_000, 512)
for c in z.split(5000): c.normal_(generator=g)
y = torch.arange(60_000) % 10
i = LatentInterpretation(None, None, z, torch.full((60_000,10), .1), y, 'here')
start = rss()
c = i.characteristics(); a = rss()-start
i.plot_pca(); b = rss()-start
e = knn_error(z[:10_000], y[:10_000], z[:2048], y[:2048], 1); d = rss()-start
i.plot_units(); i.plot_histograms(); i.plot_reliability(); f = rss()-start
print(a, b, d, f, float(c.loc['effective_rank'].iloc[0]), e)'''
    out = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=300)
    assert out.returncode == 0, out.stderr
    *more,rank,error = map(float, out.stdout.split()[-6:])
    assert max(more) < 1, more
    assert 505 < rank < 512 and error == 0

def test_a_very_sure_models_errors_cost_what_they_should():
    "Gaps of 150 in the logits: float32 probabilities would be 0, and the loss whatever 0 is clipped to"
    learn = uneven_learner(model=nn.Sequential(nn.Flatten(), nn.Linear(64,3)))
    with torch.no_grad(): learn.model[1].weight.zero_(); learn.model[1].bias.copy_(tensor([150.,0.,0.]))
    i = from_learner(learn)
    assert i.calibration().loc['nll'].item() == pytest.approx(150*float((i.targets != 0).float().mean()), rel=1e-5)

# Layers before an operation in place

def inplace(inplace=True): set_seed(0); return nn.Sequential(nn.Flatten(), nn.Linear(64,8), nn.ReLU(inplace=inplace), nn.Linear(8,3))
@pytest.mark.parametrize('layer', ['1',1,nn.Linear,'1:input','2','2:input'])
def test_interpretation_of_a_layer_before_an_operation_in_place(layer):
    i,j = (LatentInterpretation.from_learner(new_learner(model=inplace(k)), layer) for k in (True,False))
    assert torch.equal(i.features, j.features) and torch.equal(i.probs, j.probs)
    if layer == '1': assert (i.features < 0).any()                                    # as they left the layer, before the ReLU
