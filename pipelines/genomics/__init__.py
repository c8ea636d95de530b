"""The genomics command line: ``python -m pipelines.genomics <command>``."""

from pipelines.cli import DEVICE, MODEL, TRACKING, Command, Domain, import_run

_HERE = "pipelines.genomics"

_FASTA = ("data.fasta", "FASTA (plain, gzip, bgzip) or GenBank file")
_STORES = ("data.stores", "folder in which prepared genomes are kept and found again (stores)")
_DIVISION = (
    ("shards", "split the work over so many processes (1); shard=<0 ...> says which this is, or a SLURM array does"),
    ("engine", "local, or ray with workers=<actors> (local)"),
)

GENOMICS = Domain(
    name="genomics",
    summary="DNA language models: from a FASTA file to an evaluated, tracked model.",
    experiments=("demo", "umaydis_cds", "umaydis_h100", "umaydis_long", "umaydis_mlm", "umaydis_segment"),
    tasks=("causal", "classify", "mlm", "segment"),
    commands=(
        Command(
            word="prepare",
            summary="Turn a genome into a store that training reads at random positions.",
            about="Reads the file once and writes a folder with one byte a base. The folder's name holds a hash of the "
            "file's content, so preparing the same genome again finds it. train, evaluate and predict prepare what "
            "they need by themselves; prepare is for doing it beforehand, or for a machine that only trains.",
            options=((_FASTA[0], f"{_FASTA[1]} (the bundled genome)"), _STORES),
            examples=("prepare data.fasta=my.fa.gz",),
            schema=f"{_HERE}.roots:PrepareRoot",
            run=f"{_HERE}.commands:prepare",
        ),
        Command(
            word="train",
            summary="Train a DNA language model, or a model of annotation on top of one.",
            about="Trains on windows of all contigs but those held out, and writes a run folder with the measurements, "
            "checkpoints, and the model folder, which is all that the other commands need. The run is recorded in "
            "MLflow. A run that was stopped or killed goes on with resume=<its folder or MLflow run id>.",
            options=(
                ("data.fasta", "FASTA (plain, gzip, bgzip) or GenBank file (the bundled genome)"),
                ("data.test", "contigs held out for evaluate, as in [chr20,chr21] (a tenth of the bases)"),
                ("data.validation", "contigs held out to watch training (a twentieth of the bases)"),
                ("data", "genome forgets the contigs that a recipe names (genome)"),
                ("data.window", "bases that the model sees at once in training (4096)"),
                (
                    "task",
                    "causal: each base from those before it; mlm: hidden bases from both sides; classify: windows in "
                    "and outside features; segment: coding, intron or intergenic, for each base (causal)",
                ),
                ("data.annotation", "of classify and segment: GFF3, GTF, BED or GenBank file of the features"),
                ("data.positive", "of classify: the type of feature to tell from the rest (CDS)"),
                ("data.min_overlap", "of classify: share of a positive window in such features, at least (0.5)"),
                ("data.negatives", "of classify: matched in GC content, balanced in number, or all (matched)"),
                ("data.context", "of classify: bases that the model sees, the window amid them (the window alone)"),
                ("task.pretrained", "of classify and segment: model folder to start from (none)"),
                ("task.freeze", "true trains the head alone on what was pre-trained (false)"),
                (
                    "backbone",
                    "mamba1, mamba2, mamba2_tiny, mamba2_small, mamba2_medium, transformer, hybrid, and for "
                    "task=mlm bimamba2 or bimamba2_rc (mamba2)",
                ),
                ("trainer", "auto, cpu, gpu, or multi_gpu with torchrun (auto)"),
                ("trainer.max_steps", "optimizer steps (1000)"),
                ("trainer.max_minutes", "stop and save after this long (no limit)"),
                ("trainer.context_parallel", "processes that split each window, of trainer.devices in all (1)"),
                ("trainer.segment_length", "train longer windows exactly, with the memory of so many bases (whole)"),
                (
                    "experiment",
                    "a complete recipe: demo, umaydis_h100, umaydis_long, umaydis_mlm, umaydis_cds or umaydis_segment",
                ),
                ("run.dir", "run folder (runs/genomics-<date>-<time>); run.overwrite=true replaces a run there"),
                ("run.export", "write the settings to this YAML file, for a machine without Hydra, and train nothing"),
                ("resume", "run folder or MLflow run id of a run to go on with"),
                TRACKING,
                ("tracking.enabled", "false records nothing in MLflow"),
            ),
            examples=(
                "train data.fasta=my.fa.gz backbone=mamba2 trainer.max_steps=2000 data.test=[chr20,chr21]",
                "train experiment=demo",
                "train task=classify data.fasta=my.fa data.annotation=genes.gff3 data.positive=CDS data.window=200",
                "train resume=runs/demo",
            ),
            schema=f"{_HERE}.roots:TrainRoot",
            run=f"{_HERE}.commands:train",
        ),
        Command(
            word="evaluate",
            summary="Measure a model on the contigs held out from it, beside what a sceptic would try first.",
            about="Prints bits per base of the model and of Markov models fitted on the same training regions, over "
            "the same positions: in all, by contig, and by repeat-masked or not where the genome says. Of a masked "
            "model: bits per hidden base and the share told right, beside two-sided k-mer models that see what it "
            "sees. Of a model of annotation: AUC, F1, calibration and more, beside k-mer regression and Markov "
            "log-odds, or codon models, fitted on the same labels. Table, numbers and plots are kept beside the model "
            "and in its MLflow run.",
            options=(
                MODEL,
                ("max_bases", "score at most this many bases, from the start of the test regions (all)"),
                ("context", "bases after which every model forgets what it has read (never, within a contig)"),
                ("max_order", "largest Markov order considered (10); the order is chosen on validation"),
                ("both_strands", "average over both strands (true)"),
                ("mask_fraction", "of a masked model: how many bases are hidden (as in training)"),
                ("windows.halo", "of a masked model: bases that are read on either side of a window (2048)"),
                ("out", "folder (evaluation/ beside the model folder)"),
                ("locus", "of annotation: contig:start-end to draw, counted from 0 (amid the test contigs)"),
                ("data.fasta", "the genome of the training, where it is not where it was then"),
                ("data.annotation", "the annotation of the training, likewise"),
                DEVICE,
                TRACKING,
            ),
            examples=("evaluate model=runs/demo/model", "evaluate model=runs/demo/model max_bases=100000"),
            schema=f"{_HERE}.roots:EvaluateRoot",
            run=f"{_HERE}.commands:evaluate",
        ),
        Command(
            word="predict",
            summary="Write the log-likelihood of every base of a file, or annotate it.",
            about="Streams each contig through the model with carried state, in memory that does not grow with its "
            "length, and writes a Parquet table and a bedGraph track for each, and a bigWig track for all if wanted. "
            "What is done already is skipped, in the middle of a contig too, so the same line goes on after an "
            "interruption. Beyond 1,000 contigs small ones share files. The work may be divided: over shards, such as "
            "the tasks of a SLURM array, of which the last to end completes the folder, or over a Ray cluster; the "
            "files are the same to the byte. A shard is made of whole contigs, unless block cuts them. A masked model "
            "reads windows with a halo, and the manifest says how far a wider halo would move its scores. A model of "
            "annotation gives probabilities of windows or of bases, with tracks of each, and blocks change none.",
            options=(
                MODEL,
                _FASTA,
                ("out", "folder of the results"),
                ("both_strands", "average over both strands (false)"),
                ("tracks", "for genome browsers: [bedgraph], [bigwig], [bedgraph,bigwig] or [] ([bedgraph])"),
                *_DIVISION,
                ("block", "cut longer contigs into blocks of so many bases, which do not know of each other (whole)"),
                ("warmup", "bases read before each block, and before the start of circular contigs (0)"),
                ("chunk", "bases at a time (16384); changes memory and speed, not the result"),
                ("mask_every", "of a masked model: each of so many readings hides every so many-th base (8)"),
                ("windows.halo", "of a masked model: bases that are read on either side of a window (2048)"),
                DEVICE,
            ),
            examples=(
                "predict model=runs/demo/model data.fasta=other.fa out=scores/",
                "predict model=runs/demo/model data.fasta=other.fa out=scores/ tracks=[bigwig] shards=16 shard=3",
            ),
            schema=f"{_HERE}.roots:PredictRoot",
            run=f"{_HERE}.commands:predict",
        ),
        Command(
            word="score",
            summary="Score the variants of a VCF: how much likelier is the alternative than the reference?",
            about="Compares windows of equal length with the reference and with each alternative allele, given the "
            "same bases before them, and takes the mean of both strands; a masked model tells the bases of either "
            "allele from both flanks. REF is checked against the genome, alleles "
            "are left-normalised, and what cannot be scored is passed on with the reason. Writes the records in their "
            "order with the scores in INFO (SERP_LLR, nats), a tabix index where they are sorted, and a Parquet table "
            "with a row for each allele. The same line goes on after an interruption.",
            options=(
                MODEL,
                ("data.vcf", "VCF (plain, gzip, bgzip) or BCF file"),
                ("data.fasta", "the genome that the variants were called on: FASTA or GenBank file"),
                ("out", "VCF to write; bgzipped and indexed if it ends in .vcf.gz"),
                ("context", "bases read before a variant, on each strand; on both sides by a masked model (2048)"),
                ("window", "bases of reference and alternative that are compared, at most (512)"),
                ("chunk", "bases at a time (65536); changes memory and speed, not the result"),
                DEVICE,
                TRACKING,
                ("tracking.enabled", "false records nothing in MLflow"),
            ),
            examples=("score model=runs/demo/model data.vcf=in.vcf.gz data.fasta=ref.fa out=scored.vcf.gz",),
            schema=f"{_HERE}.roots:ScoreRoot",
            run=f"{_HERE}.commands:score",
        ),
        Command(
            word="embed",
            summary="Write what a model makes of windows, bases or regions, as vectors.",
            about="Hidden states with coordinates, in Parquet: the mean over each window, base or region, and over "
            "both strands. Contigs are streamed as in predict, in memory that does not grow with their length, and "
            "the work may be divided and goes on after an interruption in the same ways. Single bases and both "
            "strands take room on the disk meanwhile: 8 bytes a number.",
            options=(
                MODEL,
                _FASTA,
                ("out", "folder of the embeddings"),
                ("per", "window, base or region (window)"),
                ("window", "bases of a window (1000)"),
                ("data.regions", "BED, GFF3 or GTF file, for per=region; every row is a region"),
                ("context", "bases read before a region on each strand, by a masked model on both sides (8192)"),
                ("layer", "residual stream behind so many layers (what the head sees)"),
                ("both_strands", "mean of both strands (true)"),
                ("dtype", "float32 or float16 (float32)"),
                *_DIVISION,
                ("block", "cut longer contigs into blocks of so many bases, which do not know of each other (whole)"),
                ("warmup", "bases read before each block, and before the start of circular contigs (0)"),
                DEVICE,
            ),
            examples=(
                "embed model=runs/demo/model data.fasta=other.fa out=vectors/ window=500",
                "embed model=runs/demo/model data.fasta=other.fa data.regions=genes.bed per=region out=vectors/",
            ),
            schema=f"{_HERE}.roots:EmbedRoot",
            run=f"{_HERE}.commands:embed",
        ),
        Command(
            word="generate",
            summary="Sample DNA from a model.",
            about="Continues a prompt base by base, in constant memory and time for each, and writes FASTA whose "
            "headers say how to get the same sequences again.",
            options=(
                MODEL,
                ("prompt", "bases to continue (none)"),
                ("length", "bases to sample (1000)"),
                ("count", "sequences (1)"),
                ("temperature", "below 1 prefers what the model holds likely (1.0)"),
                ("top_k", "sample from the k likeliest bases (4)"),
                ("seed", "the same seed gives the same sequences (0)"),
                ("out", "FASTA file"),
                DEVICE,
            ),
            examples=("generate model=runs/demo/model prompt=ATGGCG length=2000 out=sample.fa",),
            schema=f"{_HERE}.roots:GenerateRoot",
            run=f"{_HERE}.commands:generate",
        ),
        import_run("genomics"),
    ),
)
