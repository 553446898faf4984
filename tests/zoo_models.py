"The models of the zoo: tiny, of random weights, as users of fastai have them. What is right for each is written by hand."
from dataclasses import dataclass
from fastai.vision.all import *
from fastai.vision.models.unet import DynamicUnet
from fastai.text.models import AWD_LSTM,awd_lstm_clas_config,get_text_classifier
from fastai.callback.rnn import rnn_cbs
from fastai.tabular.all import TabularModel,TabularPandas,Categorify,FillMissing,Normalize,range_of,RandomSplitter
from torch.utils.checkpoint import checkpoint
from torchvision import models as tv
from latentreg_fastai.data.load import tensor_dls

K,BS = 3,6

# Weights that hide nothing: no gain or layer scale that starts at 0, no dropout, so that two passes of one batch are alike

def quiet(m):
    "No dropout, of any kind: what is drawn for a row would differ between two passes"
    for s in m.modules():
        for k in ('p','drop_prob','embed_p','weight_p','dropout_p','dropout','attention_dropout','hidden_dropout_prob'):
            if type(getattr(s, k, None)) in (float,int): setattr(s, k, 0. if k != 'weight_p' else 1e-12)   # fastai's WeightDropout fails with 0
    return m

def awake(m):
    "Every parameter away from 0, so that each branch is heard"
    for n,p in m.named_parameters():
        with torch.no_grad():
            if p.ndim <= 1 or p.numel() == max(p.shape): p.uniform_(.5, 1.5) if not n.endswith('bias') else p.normal_(0, .1)
            elif p.std() < .03: p.normal_(0, .5/p[0].numel()**.5)
    return m

@dataclass
class Net:
    "A model, its data, and what is right for it"
    name:str
    group:str
    make:Callable                 # makes the model
    place:str                     # where penalties stand by default: a layer's name, or 'name:input'; None: there is none to be found
    named:str=None                # a layer at which all of the signal passes, for `layers=`
    bad:str=None                  # one at which it does not
    data:Callable=None            # makes n inputs (a tuple) and their targets; by default images and classes
    dls:Callable=None             # makes the loaders from (number of samples); by default of `data`
    loss:Callable=None            # by default CrossEntropyLossFlat()
    each:Callable=None            # the loss of each row, of predictions and targets
    cbs:Callable=list             # what else the learner needs
    pred:Callable=noop            # what those make of the model's output
    out:Callable=noop             # what of it goes into the loss, as a tensor with a row a sample
    note:str=''                   # for the page
    twin:Callable=None            # makes a plain network of the same weights, where the model is compiled, traced or checkpointed
    opaque:bool=False             # can hooks not look into it?
    slow:bool=False
    needs:str=None                # a package
    learner:Callable=None         # what is done to the learner before the fit
    behind:str=None               # a layer behind BatchNorm or Dropout
    head:str=None                 # where phantoms stand by default: the input of the layer that makes the prediction; by default `place`
    twice:str=None                # a layer that is passed several times
    masked:bool=False             # do the rows have masks of their own?
    takes:int=0                   # where `named` gives several tensors: the one that penalties take
    gan:Callable=None             # makes the learner, where `make` makes the critic of a GAN

NETS = {}
def net(name, group, make=None, place=None, named=None, bad=None, **kwargs):
    "Add one"
    def _add(make): NETS[name] = Net(name, group, make, place, named, bad, **kwargs); return make
    return _add if make is None else _add(make)

def classes(n): return torch.arange(n).roll(n//3) % K
def images(n, size=32, c=3):
    y = classes(n)
    return (torch.randn(n, c, size, size) + y[:,None,None,None].float(),),y
def small(n): return images(n, 8, 1)
def masks(n): return images(n)[0],torch.randint(0, K, (n,32,32))
def vectors(n): return (torch.randn(n, 10) + classes(n)[:,None],),classes(n)
def series(n): return (torch.randn(n, 4, 20) + classes(n)[:,None,None],),classes(n)
def steps(n): return (torch.randn(n, 9, 4) + classes(n)[:,None,None],),classes(n)
def tokens(n, length=12, vocab=40): return (torch.randint(5, vocab, (n,length)),),classes(n)
def two_images(n): return (images(n)[0][0], images(n)[0][0]),classes(n)

def flat_loaders(data):
    def _dls(n, bs=BS):
        xb,y = data(n)
        vx,vy = data(BS)
        return tensor_dls((*xb,y), (*vx,vy), bs=bs, device='cpu', vocab=list(range(K)) if not y.is_floating_point() else None)
    return _dls

class Rows:
    "A data set of tuples, as torch's are"
    def __init__(self, xs, y, c=K): self.xs,self.y,self.c,self.targets = xs,y,c,y.tolist()
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return *[{k: v[i] for k,v in x.items()} if isinstance(x, dict) else x[i] for x in self.xs],self.y[i]

def rows_loaders(data):
    def _dls(n, bs=BS):
        dls = DataLoaders(DataLoader(Rows(*data(n)), bs=bs, shuffle=True, drop_last=True, num_workers=0), DataLoader(Rows(*data(BS)), bs=bs, num_workers=0))
        dls.c,dls.n_inp = K,len(data(1)[0])
        return dls
    return _dls

# torchvision

BB = tv.resnet.BasicBlock
def tv_resnet(**kwargs): return tv.resnet.ResNet(BB, [1,1,1,1], num_classes=K, **kwargs)
net('ResNet', 'torchvision', tv_resnet, 'fc:input', 'layer2', 'layer1.0.conv1')
net('DenseNet', 'torchvision', lambda: tv.densenet.DenseNet(8, (2,2,2), 16, num_classes=K), 'classifier:input', 'features.transition1', 'features.denseblock1.denselayer1')
net('MobileNet v3', 'torchvision', lambda: tv.mobilenet_v3_small(num_classes=K), 'classifier.1', 'features.3', 'features.5.block.0', head='classifier.3:input')
net('VGG with BatchNorm', 'torchvision', lambda: nn.Sequential(tv.vgg.make_layers([8,'M',16,'M'], True), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 16), nn.ReLU(True),
    nn.Dropout(), nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, K)), '7', '0.3', head='9:input')
net('GoogLeNet, auxiliary heads', 'torchvision', lambda: tv.GoogLeNet(K, aux_logits=True, init_weights=False), 'avgpool', 'maxpool2', 'inception3a.branch1', data=partial(images, size=64), head='fc:input',
    loss=lambda o,y: F.cross_entropy(o[0], y) + .3*F.cross_entropy(o[1], y) + .3*F.cross_entropy(o[2], y) if isinstance(o, tuple) else F.cross_entropy(o, y),
    each=lambda o,y: F.cross_entropy(o[0], y, reduction='none') + .3*F.cross_entropy(o[1], y, reduction='none') + .3*F.cross_entropy(o[2], y, reduction='none'), out=lambda o: torch.cat(tuple(o), 1) if isinstance(o, tuple) else o, slow=True)
net('ViT', 'torchvision', lambda: tv.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=K), 'heads.head:input', 'encoder.layers.encoder_layer_1', 'encoder.layers.encoder_layer_1.mlp')
net('Swin', 'torchvision', lambda: tv.SwinTransformer([2,2], 8, [1,1], [1,2], [4,4], num_classes=K, stochastic_depth_prob=0.), 'head:input', 'features.1', 'features.1.0.attn')
net('ConvNeXt', 'torchvision', lambda: tv.ConvNeXt([tv.convnext.CNBlockConfig(8,16,1), tv.convnext.CNBlockConfig(16,None,2)], num_classes=K), 'classifier.2:input', 'features.1', 'features.3.0.block')

def seg_loss(o, y): return F.cross_entropy(o['out'], y) + .5*F.cross_entropy(o['aux'], y) if 'aux' in o else F.cross_entropy(o['out'], y)
def seg_each(o, y):
    ce = lambda k: F.cross_entropy(o[k], y, reduction='none').mean((1,2))
    return ce('out') + (.5*ce('aux') if 'aux' in o else 0)
def seg_out(o): return torch.cat([o[k].flatten(1) for k in ('out','aux') if k in o], 1)
def segmenter(head, aux):
    from torchvision.models._utils import IntermediateLayerGetter
    body = IntermediateLayerGetter(tv_resnet(), {'layer2': 'aux', 'layer4': 'out'} if aux else {'layer4': 'out'})
    cls = tv.segmentation.FCN if head is tv.segmentation.fcn.FCNHead else tv.segmentation.DeepLabV3
    return cls(body, head(512, K), tv.segmentation.fcn.FCNHead(128, K) if aux else None)
net('FCN, a dict', 'segmentation', lambda: segmenter(tv.segmentation.fcn.FCNHead, False), 'classifier.2', 'backbone.layer1', 'backbone.layer1.0.conv1', data=masks, loss=seg_loss, each=seg_each, out=seg_out)
net('FCN, auxiliary head', 'segmentation', lambda: segmenter(tv.segmentation.fcn.FCNHead, True), 'classifier.2', 'backbone.layer1', 'backbone.layer3', data=masks, loss=seg_loss, each=seg_each, out=seg_out)
net('DeepLab v3', 'segmentation', lambda: segmenter(lambda i,k: tv.segmentation.deeplabv3.DeepLabHead(i, k, [2,4]), False), 'classifier.3', 'backbone.layer1', 'classifier.0.convs.1', data=masks, loss=seg_loss, each=seg_each, out=seg_out, slow=True)
pixels = dict(data=masks, loss=CrossEntropyLossFlat(axis=1), each=lambda o,y: F.cross_entropy(o, y, reduction='none').mean((1,2)))
def smp(cls, **kwargs):
    import segmentation_models_pytorch
    return getattr(segmentation_models_pytorch, cls)('resnet18', encoder_weights=None, classes=K, **kwargs)
net('smp Unet', 'segmentation', lambda: smp('Unet', encoder_depth=3, decoder_channels=(16,8,8)), 'segmentation_head.0:input', 'encoder.conv1', 'encoder.layer1', needs='segmentation_models_pytorch', **pixels)
net('smp FPN', 'segmentation', lambda: smp('FPN', encoder_depth=4, upsampling=2, decoder_pyramid_channels=16, decoder_segmentation_channels=32), 'decoder.merge', 'encoder.conv1', 'encoder.layer2', needs='segmentation_models_pytorch', slow=True, **pixels)
net('smp DeepLab v3+', 'segmentation', lambda: smp('DeepLabV3Plus', encoder_depth=4, decoder_channels=16), 'segmentation_head.0:input', 'encoder.layer1', 'encoder.layer3', needs='segmentation_models_pytorch', slow=True, **pixels)
net('fastai U-Net', 'segmentation', lambda: DynamicUnet(nn.Sequential(ConvLayer(3,8,stride=2), nn.Sequential(ResBlock(1,8,16,stride=2)), nn.Sequential(ResBlock(1,16,16))), K, (32,32)), 'layers.8', 'layers.8', 'layers.4', **pixels)

# timm

def timm_net(name, **kwargs):
    import timm
    return timm.create_model(name, num_classes=K, **kwargs)
tiny = dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)
net('resnet10t', 'timm', lambda: timm_net('resnet10t', channels=(16,24,32,48)), 'fc:input', 'layer1', 'layer2.0.conv1', needs='timm')
net('efficientnet_lite0', 'timm', lambda: timm_net('efficientnet_lite0'), 'classifier:input', 'blocks.1', 'blocks.2.1.conv_pw', needs='timm', slow=True)
net('vit_tiny', 'timm', lambda: timm_net('vit_tiny_patch16_224', **tiny), 'fc_norm:input', 'blocks.1', 'blocks.1.mlp', needs='timm')
net('deit_tiny_distilled', 'timm', lambda: timm_net('deit_tiny_distilled_patch16_224', **tiny), None, 'blocks.1', 'blocks.1.attn', needs='timm', note='two heads, of which the mean is the prediction')
net('mixer', 'timm', lambda: __import__('timm').models.MlpMixer(K, 32, patch_size=8, num_blocks=4, embed_dim=24), 'head:input', 'blocks.1', 'blocks.1.mlp_tokens', needs='timm')
net('convnext_atto', 'timm', lambda: timm_net('convnext_atto', dims=(8,16,24,32), depths=(1,1,2,1)), 'head.fc:input', 'stages.1', 'stages.1.blocks.0.mlp', needs='timm')
net('swin_tiny', 'timm', lambda: timm_net('swin_tiny_patch4_window7_224', img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(1,1,2,1), num_heads=(1,2,2,2)), 'head.fc:input', 'layers.1', 'layers.1.blocks.0.attn', needs='timm')
net('regnetx_002', 'timm', lambda: timm_net('regnetx_002'), 'head.fc:input', 's1', 's2.b1.conv1', needs='timm', slow=True)
net('mobilevit_xxs', 'timm', lambda: timm_net('mobilevit_xxs'), 'head.fc:input', 'stages.1', 'stages.2.1.transformer', needs='timm', slow=True)

# fastai's own

net('vision_learner', 'fastai', lambda: nn.Sequential(create_body(tv_resnet(), cut=-2), create_head(512, K)), '1.5', '0.5', '0.5.0.conv1', head='1.8:input', behind='1.8:input')
net('vision_learner, frozen body', 'fastai', lambda: nn.Sequential(create_body(tv_resnet(), cut=-2), create_head(512, K)), '1.5', '0.5', '0.5.0.conv1', head='1.8:input',
    learner=lambda learn: [p.requires_grad_(False) for p in learn.model[0].parameters()], note='the body is frozen')
net('xresnet', 'fastai', lambda: XResNet(ResBlock, 1, [1,1,1,1], n_out=K), '11:input', '4', '4.0.convpath.0')
net('simple_cnn', 'fastai', lambda: nn.Sequential(ConvLayer(3,8,stride=2), ConvLayer(8,8,stride=2), ConvLayer(8,K,stride=2,act_cls=None,norm_type=None), nn.AdaptiveAvgPool2d(1), nn.Flatten()), '1', '0', note='a convolutional head')

def table(n, cats=True, conts=True):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=rng.choice(list('xyz'), n+BS), b=rng.choice(list('pq'), n+BS), u=rng.normal(size=n+BS), v=rng.normal(size=n+BS), kind=[f'k{i%K}' for i in range(n+BS)]))
    from fastai.tabular.all import CategoryBlock as CB
    to = TabularPandas(df, [Categorify,Normalize] if conts else [Categorify], ['a','b'] if cats else [], ['u','v'] if conts else [], 'kind', y_block=CB(), splits=(list(range(n)),list(range(n,n+BS))))
    return to
def table_dls(**kwargs):
    def _dls(n, bs=BS): return table(n, **kwargs).dataloaders(bs=bs, num_workers=0, device='cpu')
    return _dls
def tabular(cats, conts): return TabularModel([(4,3),(3,2)] if cats else [], 2*conts, K, [12,8], ps=.1)
net('tabular_learner', 'fastai', lambda: tabular(True, True), 'layers.1.2:input', 'layers.0', twice='layers.0.1', head='layers.2.0:input', dls=table_dls(), behind='layers.2.0:input')
net('tabular_learner, only continuous', 'fastai', lambda: tabular(False, True), 'layers.1.2:input', 'layers.0', twice='layers.0.1', head='layers.2.0:input', dls=table_dls(cats=False))
net('tabular_learner, only categories', 'fastai', lambda: tabular(True, False), 'layers.1.2:input', 'layers.0', twice='layers.0.1', head='layers.2.0:input', dls=table_dls(conts=False))
lstm_config = {**awd_lstm_clas_config, 'emb_sz': 10, 'n_hid': 12, 'n_layers': 2}
net('AWD_LSTM classifier', 'text', lambda: get_text_classifier(AWD_LSTM, 40, K, seq_len=72, config=lstm_config, drop_mult=.1), '1.layers.0.3', None, None, data=tokens, head='1.layers.1.2:input', cbs=rnn_cbs, pred=lambda o: o[0] if isinstance(o, tuple) else o)

# Hugging Face

HF = dict(vocab_size=40, num_labels=K, pad_token_id=1)
def hf(cls, config, **kwargs):
    import transformers
    c = getattr(transformers, config)(**{**HF, **kwargs})
    c._attn_implementation = 'eager'
    return getattr(transformers, cls)(c)
class FromDict(nn.Module):
    "Takes the batch of a tokenizer, a dict; returns logits"
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, b): return self.m(**b).logits
class FromTuple(nn.Module):
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, ids, mask): return self.m(input_ids=ids, attention_mask=mask).logits
class ToOutput(nn.Module):
    "Returns the ModelOutput"
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, b): return self.m(**b)
def text_dict(n, pad=False, labels=False):
    (x,),y = tokens(n)
    mask = torch.ones_like(x)
    if pad:
        for i in range(n): mask[i,6+i%6:] = 0
        x = x*mask + 1*(1-mask)
    d = dict(input_ids=x, attention_mask=mask)
    if labels: d['labels'] = y
    return (d,),y
def text_pair(n): (d,),y = text_dict(n); return tuple(d.values()),y
bert = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40)
hf_kw = dict(needs='transformers', dls=rows_loaders(text_dict))
net('BERT, a dict', 'Hugging Face', lambda: FromDict(hf('BertForSequenceClassification', 'BertConfig', **bert)), 'm.bert.pooler', 'm.bert.encoder.layer.1', 'm.bert.encoder.layer.1.attention.self', head='m.classifier:input', **hf_kw)
net('BERT, texts of different lengths', 'Hugging Face', lambda: FromDict(hf('BertForSequenceClassification', 'BertConfig', **bert)), 'm.bert.pooler', 'm.bert.encoder.layer.1', 'm.bert.encoder.layer.1.attention.self', head='m.classifier:input',
    needs='transformers', dls=rows_loaders(partial(text_dict, pad=True)), masked=True, note='the mask of a row stays its own')
net('BERT, ids and mask', 'Hugging Face', lambda: FromTuple(hf('BertForSequenceClassification', 'BertConfig', **bert)), 'm.bert.pooler', 'm.bert.encoder.layer.1', 'm.bert.encoder.layer.1.attention.self', head='m.classifier:input',
    needs='transformers', dls=rows_loaders(text_pair))
net('BERT, a ModelOutput', 'Hugging Face', lambda: ToOutput(hf('BertForSequenceClassification', 'BertConfig', **bert)), 'm.bert.pooler', 'm.bert.encoder.layer.1', 'm.bert.encoder.layer.1.attention.self', head='m.classifier:input',
    loss=lambda o,y: F.cross_entropy(o.logits, y), each=lambda o,y: F.cross_entropy(o.logits, y, reduction='none'), out=lambda o: o.logits, **hf_kw)
net('BERT, all hidden states', 'Hugging Face', lambda: ToOutput(hf('BertForSequenceClassification', 'BertConfig', output_hidden_states=True, **bert)), 'm.bert.pooler', 'm.bert.encoder.layer.1', 'm.bert.encoder.layer.1.attention.self', head='m.classifier:input',
    loss=lambda o,y: F.cross_entropy(o.logits, y), each=lambda o,y: F.cross_entropy(o.logits, y, reduction='none'), out=lambda o: o.logits, **hf_kw)
net("BERT, the model's own loss", 'Hugging Face', lambda: ToOutput(hf('BertForSequenceClassification', 'BertConfig', **bert)), 'm.bert.pooler', 'm.bert.encoder.layer.1', 'm.bert.encoder.layer.1.attention.self', head='m.classifier:input',
    needs='transformers', dls=rows_loaders(partial(text_dict, labels=True)), loss=lambda o,y: o.loss, each=lambda o,y: F.cross_entropy(o.logits, y, reduction='none'), out=lambda o: o.logits)
net('DistilBERT', 'Hugging Face', lambda: FromDict(hf('DistilBertForSequenceClassification', 'DistilBertConfig', dim=16, n_layers=4, n_heads=2, hidden_dim=32, max_position_embeddings=40)), 'm.dropout:input', 'm.distilbert.transformer.layer.1', 'm.distilbert.transformer.layer.1.ffn', head='m.classifier:input', **hf_kw)
net('RoBERTa', 'Hugging Face', lambda: FromDict(hf('RobertaForSequenceClassification', 'RobertaConfig', **bert)), 'm.classifier.dropout:input#2', 'm.roberta.encoder.layer.1', 'm.roberta.encoder.layer.1.attention.self', head='m.classifier.out_proj:input', **hf_kw)
net('GPT-2', 'Hugging Face', lambda: FromDict(hf('GPT2ForSequenceClassification', 'GPT2Config', n_embd=16, n_layer=4, n_head=2, n_positions=40)), 'm.score:input', 'm.transformer.h.1', 'm.transformer.h.1.mlp', **hf_kw)
net('ALBERT', 'Hugging Face', lambda: FromDict(hf('AlbertForSequenceClassification', 'AlbertConfig', embedding_size=8, **bert)), 'm.albert.pooler_activation', None, 'm.albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query', head='m.classifier:input', twice='m.albert.encoder.albert_layer_groups.0', note='one block, passed four times', **hf_kw)
class T5Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.m,self.head = hf('T5EncoderModel', 'T5Config', d_model=16, d_kv=8, d_ff=32, dropout_rate=.1, num_layers=4, num_heads=2),nn.Linear(16, K)
    def forward(self, b): return self.head(self.m(**b).last_hidden_state.mean(1))
net('T5 encoder', 'Hugging Face', T5Mean, 'head:input', 'm.encoder.block.1', 'm.encoder.block.1.layer.0.SelfAttention', **hf_kw)
class Pixels(nn.Module):
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, x): return self.m(pixel_values=x).logits
def hf_vit():
    import transformers
    c = transformers.ViTConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8, num_labels=K)
    c._attn_implementation = 'eager'
    return Pixels(transformers.ViTForImageClassification(c))
net('ViT, Hugging Face', 'Hugging Face', hf_vit, 'm.classifier:input', 'm.vit.layers.1', 'm.vit.layers.1.mlp', needs='transformers')

# Networks of users

class Siamese(nn.Module):
    def __init__(self): super().__init__(); self.encoder,self.head = nn.Sequential(ConvLayer(3,8,stride=4), nn.AdaptiveAvgPool2d(2), nn.Flatten()),nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, K))
    def forward(self, a, b): return self.head(torch.cat([self.encoder(a), self.encoder(b)], 1))
net('siamese', 'own networks', Siamese, 'head.1', 'head.0', twice='encoder', data=two_images)
net('1-D convolution', 'own networks', lambda: nn.Sequential(nn.Conv1d(4,8,3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8,8,3,stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, K)), '6', '2', data=series)
class Recurrent(nn.Module):
    def __init__(self, cls=nn.GRU, last=True, bidirectional=False):
        super().__init__()
        self.last = last
        self.rnn,self.head = cls(4, 8, num_layers=2, batch_first=True, bidirectional=bidirectional),nn.Linear(8*(1+bidirectional), K)
    def forward(self, x):
        out,h = self.rnn(x)
        h = h[0] if isinstance(h, tuple) else h
        return self.head(out[:,-1] if self.last else h[-1])
net('GRU, its output', 'own networks', Recurrent, 'head:input', 'head:input', data=steps)
net('GRU, its state', 'own networks', partial(Recurrent, last=False), 'head:input', 'head:input', 'rnn', data=steps, note='the state comes as (layers, N, ...)')
class TextLSTM(nn.Module):
    def __init__(self): super().__init__(); self.emb,self.rnn,self.head = nn.Embedding(40, 8),nn.LSTM(8, 8, batch_first=True, bidirectional=True),nn.Linear(16, K)
    def forward(self, x): return self.head(self.rnn(self.emb(x))[0].mean(1))
net('text LSTM', 'own networks', TextLSTM, 'head:input', 'emb', data=tokens)
class TimeFirst(nn.Module):
    "nn.TransformerEncoder as it is by default: (length, rows, units)"
    def __init__(self): super().__init__(); self.emb,self.enc,self.head = nn.Embedding(40, 8),nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),nn.Linear(8, K)
    def forward(self, x): return self.head(self.enc(self.emb(x).transpose(0, 1)).mean(0))
net('transformer, time first', 'own networks', TimeFirst, 'head:input', 'emb', 'enc.layers.0', data=tokens)
net('transformer, time first, as long as the batch', 'own networks', TimeFirst, 'head:input', 'emb', 'enc.layers.0', data=partial(tokens, length=BS))
class Attention(nn.Module):
    def __init__(self): super().__init__(); self.emb,self.att,self.head = nn.Linear(4, 8),nn.MultiheadAttention(8, 2, batch_first=True),nn.Linear(8, K)
    def forward(self, x): z = self.emb(x); return self.head(self.att(z, z, z)[0].mean(1))
net('nn.MultiheadAttention', 'own networks', Attention, 'head:input', 'emb', data=steps)
class OneReLU(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b,self.c,self.act = nn.Linear(10,8),nn.Linear(8,8),nn.Linear(8,K),nn.ReLU()
    def forward(self, x): return self.c(self.act(self.b(self.act(self.a(x)))))
net('one nn.ReLU twice', 'own networks', OneReLU, 'c:input', 'a', twice='act', data=vectors)
class Tied(nn.Module):
    def __init__(self): super().__init__(); self.first,self.block,self.head = nn.Linear(10,8),nn.Sequential(nn.Linear(8,8), nn.ReLU()),nn.Linear(8,K)
    def forward(self, x):
        x = self.first(x)
        for _ in range(3): x = self.block(x)
        return self.head(x)
net('one block three times', 'own networks', Tied, 'head:input', 'first', twice='block', data=vectors)
class HeadFirst(nn.Module):
    def __init__(self): super().__init__(); self.head,self.body = nn.Linear(8,K),nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU())
    def forward(self, x): return self.head(self.body(x))
net('the classifier registered first', 'own networks', HeadFirst, 'head:input', 'body.1', data=vectors)
class Auxiliary(nn.Module):
    "A head beside, in training only, registered last"
    def __init__(self): super().__init__(); self.a,self.b,self.head,self.aux = nn.Sequential(nn.Linear(10,8), nn.ReLU()),nn.Sequential(nn.Linear(8,8), nn.ReLU()),nn.Linear(8,K),nn.Linear(8,K)
    def forward(self, x):
        a = self.a(x)
        out = self.head(self.b(a))
        return (out,self.aux(a)) if self.training else out
net('an auxiliary head, in training', 'own networks', Auxiliary, 'head:input', 'a', 'b', data=vectors, loss=lambda o,y: F.cross_entropy(o[0], y) + .4*F.cross_entropy(o[1], y) if isinstance(o, tuple) else F.cross_entropy(o, y),
    each=lambda o,y: F.cross_entropy(o[0], y, reduction='none') + .4*F.cross_entropy(o[1], y, reduction='none'), out=lambda o: torch.cat(o, 1) if isinstance(o, tuple) else o)
class Reconstructing(nn.Module):
    "A decoder beside, whose output the loss does not use"
    def __init__(self): super().__init__(); self.body,self.head,self.side = nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU()),nn.Linear(8,K),nn.Linear(8,4)
    def forward(self, x): z = self.body(x); return dict(logits=self.head(z), side=self.side(z))
net('a dict of outputs', 'own networks', Reconstructing, 'head:input', 'body.1', 'side', data=vectors, loss=lambda o,y: F.cross_entropy(o['logits'], y), each=lambda o,y: F.cross_entropy(o['logits'], y, reduction='none'), out=lambda o: o['logits'])
class TupleOut(Reconstructing):
    def forward(self, x): return tuple(super().forward(x).values())
net('a tuple of outputs', 'own networks', TupleOut, 'head:input', 'body.1', 'side', data=vectors, loss=lambda o,y: F.cross_entropy(o[0], y), each=lambda o,y: F.cross_entropy(o[0], y, reduction='none'), out=lambda o: o[0])
class TupleInside(nn.Module):
    "A block that gives a tuple, of which the rest uses both"
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b = nn.Linear(10,8),nn.Linear(10,8)
        def forward(self, x): return x.new_zeros(len(x), 2),self.a(x).relu(),dict(b=self.b(x).relu())
    def __init__(self): super().__init__(); self.two,self.head = self.Two(),nn.Linear(16,K)
    def forward(self, x): _,a,b = self.two(x); return self.head(torch.cat([a,b['b']], 1))
net('a block that gives a tuple', 'own networks', TupleInside, 'head:input', 'two', 'two.a', data=vectors, takes=1, note='the first of three is not used; a penalty takes the second')
class TwoInputs(nn.Module):
    "An image and a vector"
    def __init__(self): super().__init__(); self.image,self.vector,self.head = nn.Sequential(ConvLayer(1,4,stride=2), nn.Flatten(), nn.Linear(64,8), nn.ReLU()),nn.Sequential(nn.Linear(10,8), nn.ReLU()),nn.Sequential(nn.Linear(16,8), nn.ReLU(), nn.Linear(8,K))
    def forward(self, a, b): return self.head(torch.cat([self.image(a), self.vector(b)], 1))
net('an image and a vector', 'own networks', TwoInputs, 'head.1', 'head.0', 'vector', data=lambda n: ((small(n)[0][0],vectors(n)[0][0]),classes(n)))
class IdsAndNumbers(nn.Module):
    def __init__(self): super().__init__(); self.emb,self.head = nn.Embedding(40, 8),nn.Sequential(nn.Linear(18,8), nn.ReLU(), nn.Linear(8,K))
    def forward(self, a, b): return self.head(torch.cat([self.emb(a).mean(1), b], 1))
net('tokens and a vector', 'own networks', IdsAndNumbers, 'head.1', 'head.0', 'emb', data=lambda n: ((tokens(n)[0][0],vectors(n)[0][0]),classes(n)))
class DictIn(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b,self.head = nn.Linear(10,8),nn.Linear(10,8),nn.Linear(8,K)
    def forward(self, d): return self.head((self.a(d['u'])+self.b(d['v'])).relu())
net('a dict of two vectors', 'own networks', DictIn, 'head:input', 'head:input', 'a', dls=rows_loaders(lambda n: ((dict(u=vectors(n)[0][0], v=vectors(n)[0][0]),),classes(n))))
class Functional(nn.Module):
    def __init__(self): super().__init__(); self.c,self.a,self.b,self.head = nn.Conv2d(1,4,3,stride=2),nn.Linear(36,8),nn.Linear(8,8),nn.Linear(8,K)
    def forward(self, x): return self.head(F.relu(self.b(F.relu(self.a(F.relu(self.c(x)).flatten(1))))))
net('F.relu', 'own networks', Functional, 'head:input', 'a', data=small)
net('Linear, ReLU in place', 'own networks', lambda: nn.Sequential(nn.Linear(10,8), nn.ReLU(True), nn.Linear(8,8), nn.ReLU(True), nn.Linear(8,K)), '3', '0', data=vectors)
net('MLP', 'own networks', lambda: nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU(), nn.Linear(8,K)), '3', '1', data=vectors)
net('MLP with BatchNorm and dropout', 'own networks', lambda: nn.Sequential(nn.Linear(10,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.5), nn.Linear(8,8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8,K)), '5', '2', data=vectors, behind='8:input', head='8:input')
class Ensemble(nn.Module):
    def __init__(self): super().__init__(); self.one,self.two = [nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,K)) for _ in range(2)]
    def forward(self, x): return (self.one(x)+self.two(x))/2
net('two networks, averaged', 'own networks', Ensemble, None, None, 'one.1', data=vectors)
class Keyword(nn.Module):
    "A layer that is called by keyword"
    class Scale(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(8))
        def forward(self, *, x): return x*self.w
    def __init__(self): super().__init__(); self.a,self.scale,self.head = nn.Linear(10,8),self.Scale(),nn.Linear(8,K)
    def forward(self, x): return self.head(self.scale(x=self.a(x)).tanh())
net('a layer called by keyword', 'own networks', Keyword, 'head:input', 'scale', data=vectors)
net('a residual MLP', 'own networks', lambda: nn.Sequential(nn.Linear(10,8), SkipMLP(), SkipMLP(), nn.Linear(8,K)), '2', '1', '1.f', data=vectors)
class SkipMLP(nn.Module):
    def __init__(self): super().__init__(); self.f = nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,8))
    def forward(self, x): return x + self.f(x)
class Checkpointed(nn.Module):
    def __init__(self, reentrant): super().__init__(); self.reentrant,self.a,self.b,self.head = reentrant,nn.Sequential(nn.Linear(10,8), nn.Tanh()),nn.Sequential(nn.Linear(8,8), nn.ReLU()),nn.Linear(8,K)
    def forward(self, x):
        x = self.a(x)
        return self.head(checkpoint(self.b, x, use_reentrant=self.reentrant) if self.reentrant is not None and self.training else self.b(x))
net('checkpoint', 'own networks', partial(Checkpointed, False), 'head:input', 'b', data=vectors, twin=partial(Checkpointed, None))
net('checkpoint, reentrant', 'own networks', partial(Checkpointed, True), 'head:input', 'b', data=vectors, twin=partial(Checkpointed, None))
class CheckpointedHead(nn.Module):
    "The place of penalties is within what is checkpointed"
    def __init__(self, reentrant): super().__init__(); self.reentrant,self.a,self.b = reentrant,nn.Sequential(nn.Linear(10,8), nn.Tanh()),nn.Sequential(nn.Linear(8,8), nn.ReLU(), nn.Linear(8,K))
    def forward(self, x):
        x = self.a(x)
        return checkpoint(self.b, x, use_reentrant=self.reentrant) if self.reentrant is not None and self.training else self.b(x)
net('checkpoint around the head', 'own networks', partial(CheckpointedHead, False), 'b.1', 'a', data=vectors, twin=partial(CheckpointedHead, None))
net('checkpoint around the head, reentrant', 'own networks', partial(CheckpointedHead, True), 'b.1', 'a', data=vectors, twin=partial(CheckpointedHead, None))
def cnn(norm=NormType.Batch): return nn.Sequential(ConvLayer(1,4,stride=2,norm_type=norm), ConvLayer(4,8,stride=2,norm_type=norm), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,8), nn.ReLU(), nn.Linear(8,K))
net('CNN', 'own networks', cnn, '5', '1', data=small)
def compiled(m, how):
    if how == 'function': return torch.compile(m, backend='eager')
    if how == 'method': m.compile(backend='eager')
    if how == 'part': m[1].compile(backend='eager')
    if how == 'wrapped part': m[1] = torch.compile(m[1], backend='eager')
    return m
for how,name in dict(function='torch.compile(model)', method='model.compile()', part='a part compiled', **{'wrapped part': 'a part of torch.compile'}).items():
    net(name, 'compiled and wrapped', partial(lambda how: compiled(cnn(), how), how), '5', '1', data=small, twin=cnn, opaque=True)
net('torch.jit.trace', 'compiled and wrapped', lambda: torch.jit.trace(cnn(None), torch.randn(BS,1,8,8), check_trace=False), '5', '1', data=small, twin=partial(cnn, None), opaque=True)
class PartTraced(nn.Module):
    def __init__(self): super().__init__(); self.body,self.head = torch.jit.trace(nn.Sequential(*cnn(None)[:4]), torch.randn(BS,1,8,8), check_trace=False),nn.Sequential(*cnn()[4:])
    def forward(self, x): return self.head(self.body(x))
class PartPlain(nn.Module):
    def __init__(self): super().__init__(); self.body,self.head = nn.Sequential(*cnn(None)[:4]),nn.Sequential(*cnn()[4:])
    def forward(self, x): return self.head(self.body(x))
net('a body of torch.jit.trace', 'compiled and wrapped', PartTraced, 'head.1', 'head.0', data=small, twin=PartPlain, opaque=True)
net('DataParallel', 'compiled and wrapped', lambda: nn.DataParallel(cnn()), '5', '1', data=small, twin=cnn, opaque=True)
class Vmapped(nn.Module):
    "Applies its layers to one sample at a time, by torch.vmap"
    def __init__(self): super().__init__(); self.one,self.head = nn.Sequential(nn.Linear(10,8), nn.Tanh(), nn.Linear(8,8)),nn.Linear(8,K)
    def forward(self, x): return self.head(torch.vmap(self.one)(x).relu())
net('torch.vmap', 'compiled and wrapped', Vmapped, 'head:input', None, 'one.1', data=vectors)

class Packed(nn.Module):
    "An LSTM over texts without their padding"
    def __init__(self): super().__init__(); self.emb,self.rnn,self.head = nn.Embedding(40, 8),nn.LSTM(8, 8, batch_first=True),nn.Linear(8, K)
    def forward(self, x, n):
        out,_ = self.rnn(nn.utils.rnn.pack_padded_sequence(self.emb(x), n.cpu(), batch_first=True, enforce_sorted=False))
        return self.head(nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0].sum(1))
net('LSTM, packed texts', 'own networks', Packed, 'head:input', None, 'rnn', data=lambda n: ((*tokens(n)[0],torch.arange(n)%6+4),classes(n)), masked=True, note='the length of a row stays its own')
class Bytes(nn.Module):
    "Takes images of bytes"
    def __init__(self): super().__init__(); self.net = cnn()
    def forward(self, x): return self.net(x.float()/255)
net('images of bytes', 'own networks', Bytes, 'net.5', 'net.1', data=lambda n: ((torch.randint(0, 256, (n,1,8,8), dtype=torch.uint8),),classes(n)))
class OneHot(nn.Module):
    def __init__(self): super().__init__(); self.body,self.head = nn.Sequential(nn.Flatten(), nn.Linear(480, 8), nn.ReLU()),nn.Linear(8, K)
    def forward(self, x): return self.head(self.body(F.one_hot(x, 40).float()))
net('one-hot tokens', 'own networks', OneHot, 'head:input', 'body.1', data=tokens)
class Bag(nn.Module):
    def __init__(self): super().__init__(); self.bag,self.body,self.head = nn.EmbeddingBag(40, 8),nn.Sequential(nn.Linear(8, 8), nn.ReLU()),nn.Linear(8, K)
    def forward(self, x): return self.head(self.body(self.bag(x)))
net('nn.EmbeddingBag', 'own networks', Bag, 'head:input', 'bag', data=tokens)
class Borrowed(nn.Module):
    "The prediction is made with the weights of a layer that is never called"
    def __init__(self): super().__init__(); self.body,self.head = nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU()),nn.Linear(8,K)
    def forward(self, x): return F.linear(self.body(x), self.head.weight, self.head.bias)
net('F.linear with weights of a layer', 'own networks', Borrowed, 'body.3', 'body.1', 'head', data=vectors)

class Cosine(nn.Module):
    "A head of its own kind, as of ArcFace"
    def __init__(self): super().__init__(); self.weight = nn.Parameter(torch.randn(K, 8))
    def forward(self, x): return 10*F.linear(F.normalize(x), F.normalize(self.weight))
net('a cosine head', 'own networks', lambda: nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.BatchNorm1d(8), Cosine()), '2', '1', head='4:input', data=vectors)

# Targets

net('regression', 'targets', lambda: nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU(), nn.Linear(8,1)), '3', '1', data=lambda n: (vectors(n)[0],torch.randn(n)), loss=MSELossFlat(), each=lambda o,y: (o.view(-1)-y)**2)
net('several labels', 'targets', lambda: nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU(), nn.Linear(8,K)), '3', '1', data=lambda n: (vectors(n)[0],(torch.rand(n,K)>.5).float()),
    loss=BCEWithLogitsLossFlat(), each=lambda o,y: F.binary_cross_entropy_with_logits(o, y, reduction='none').mean(1))
class TwoHeads(nn.Module):
    def __init__(self): super().__init__(); self.body,self.kind,self.size = nn.Sequential(nn.Linear(10,8), nn.ReLU(), nn.Linear(8,8), nn.ReLU()),nn.Linear(8,K),nn.Linear(8,1)
    def forward(self, x): z = self.body(x); return self.kind(z),self.size(z)
def two_targets(n, bs=BS):
    def one(n): return (*vectors(n)[0], classes(n), torch.randn(n))
    from latentreg_fastai.data.load import TensorItems
    dls = tensor_dls(TensorItems(*one(n), n_inp=1), TensorItems(*one(BS), n_inp=1), bs=bs, device='cpu')
    dls.c = K
    return dls
net('two heads, two targets', 'targets', TwoHeads, 'body.3', 'body.1', 'kind', dls=two_targets, loss=lambda o,y,v: F.cross_entropy(o[0], y) + F.mse_loss(o[1].view(-1), v),
    each=lambda o,y,v: F.cross_entropy(o[0], y, reduction='none') + (o[1].view(-1)-v)**2, out=lambda o: torch.cat(o, 1) if isinstance(o, tuple) else o)

# GANs

from fastai.vision.gan import GANLearner,FixedGANSwitcher
from latentreg_fastai.papers.networks import generator_loss,critic_loss
def gan_learner(critic):
    set_seed(0)
    noise,faces = torch.randn(4*BS, 8),images(4*BS, 16, 1)[0][0]
    gen = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Unflatten(1, (1,16,16)))
    learn = GANLearner(tensor_dls((noise,faces), (noise[:BS],faces[:BS]), bs=BS, device='cpu'), gen, critic(), generator_loss, critic_loss,
                       switcher=FixedGANSwitcher(n_crit=1, n_gen=1), switch_eval=False)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn
def critic_net(name, make, named, bad=None, **kwargs): net(name, 'the critic of a GAN', make, None, named, bad, gan=partial(gan_learner, make), **kwargs)
def conv(i, o): return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.LeakyReLU(.2))
class SkipConv(nn.Module):
    def __init__(self): super().__init__(); self.f = nn.Sequential(nn.Conv2d(8,8,3,padding=1), nn.LeakyReLU(.2), nn.Conv2d(8,8,3,padding=1))
    def forward(self, x): return x + self.f(x)
class OneAct(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b,self.act,self.head = nn.Conv2d(1,8,3,2,1),nn.Conv2d(8,8,3,2,1),nn.LeakyReLU(.2),nn.Linear(128,1)
    def forward(self, x): return self.head(self.act(self.b(self.act(self.a(x)))).flatten(1))
critic_net('convolutions', lambda: nn.Sequential(conv(1,8), conv(8,8), nn.Flatten(), nn.Linear(128,1)), '0')
critic_net('residual', lambda: nn.Sequential(conv(1,8), SkipConv(), conv(8,8), nn.Flatten(), nn.Linear(128,1)), '1', '1.f')
critic_net('one activation twice', OneAct, 'a', twice='act')
critic_net('spectral norm', lambda: nn.Sequential(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(1,8,3,2,1), n_power_iterations=1), nn.LeakyReLU(.2)), conv(8,8), nn.Flatten(), nn.Linear(128,1)).eval(), '0')

for n in NETS.values():
    if n.dls is None: n.dls = flat_loaders(n.data or images)
    if n.loss is None: n.loss = CrossEntropyLossFlat()
    if n.each is None: n.each = lambda o,y: F.cross_entropy(o, y.view(-1).long(), reduction='none')
