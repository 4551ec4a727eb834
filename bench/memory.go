package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/nbd/nbdclient"
	"github.com/storaged/storaged/replication/extent/table"

	storage "github.com/storaged/storaged"
)

// pageBytes is how much of a volume one page of its tables is for.
const pageBytes = table.BlocksPerPage * storage.BlockSize

// memoryConfig is what the flags of `bench memory` say.
type memoryConfig struct {
	storaged, dir, out, plots string
	mapped                    size.Bytes // of all volumes together
	volumes                   int
	blocksPerPage             int
	reads                     int // percent of the random requests
	depth                     int
	during                    time.Duration // of random requests at each size
	keep                      bool
}

// memoryRow is what a node used with so much mapped.
type memoryRow struct {
	Volumes       int     `json:"volumes"` // that are mapped; all are attached
	MappedBytes   float64 `json:"mapped_bytes"`
	Pages         float64 `json:"pages"`
	BlocksPerPage int     `json:"blocks_per_page"`
	TableBytes    float64 `json:"table_bytes"`     // of the store, on disk
	MappingMiB    float64 `json:"mapping_rss_mib"` // the largest while this part was mapped
	RandomMiB     float64 `json:"random_rss_mib"`  // the largest under random requests, every volume attached
	PerS          float64 `json:"requests_per_s"`
	P50us         float64 `json:"p50_us"`
	P99us         float64 `json:"p99_us"`
}

var memoryFigures = []figureOf[memoryRow]{
	{"MiB resident, mapping", func(r *memoryRow) float64 { return r.MappingMiB }},
	{"MiB resident, random requests", func(r *memoryRow) float64 { return r.RandomMiB }},
	{"MiB of tables on disk", func(r *memoryRow) float64 { return r.TableBytes / mib }},
	{"requests/s", func(r *memoryRow) float64 { return r.PerS }},
	{"p99, us", func(r *memoryRow) float64 { return r.P99us }},
}

func parseMemoryFlags(args []string) (cfg memoryConfig, err error) {
	cfg.mapped = 2 << 40
	flags := flag.NewFlagSet("bench memory", flag.ContinueOnError)
	flags.StringVar(&cfg.storaged, "storaged", "bin/storaged", "the storaged `binary`")
	flags.StringVar(&cfg.dir, "dir", "bin/bench-memory", "`directory` for the data, on the disk to measure")
	flags.StringVar(&cfg.out, "out", "bench/memory.json", "`file` for the rows")
	flags.StringVar(&cfg.plots, "plots", "", "`directory` for the plot, memory.svg; none if empty")
	flags.Var(&cfg.mapped, "mapped", "how much of volumes has a page of tables at the end, as `size`; a quarter and half of it are measured before")
	flags.IntVar(&cfg.volumes, "volumes", 1000, "`number` of volumes, of one size")
	flags.IntVar(&cfg.blocksPerPage, "blocks-per-page", 1, "`blocks` that are written of each page, of 64")
	flags.IntVar(&cfg.reads, "reads", 50, "`percent` of the random requests that read")
	flags.IntVar(&cfg.depth, "depth", 64, "random requests in flight")
	flags.DurationVar(&cfg.during, "time", 30*time.Second, "how long random requests run at each size")
	flags.BoolVar(&cfg.keep, "keep", false, "leave the data behind")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	var errs []error
	if cfg.volumes < 4 || cfg.volumes > 4000 {
		errs = append(errs, errors.New("-volumes: from 4 to 4000, as many as a node has connections"))
	} else if cfg.pages() < 1 || cfg.mapped > 64<<40 {
		errs = append(errs, fmt.Errorf("-mapped: at least %v for each volume, at most 64TiB", size.Bytes(pageBytes)))
	}
	if cfg.blocksPerPage < 1 || cfg.blocksPerPage > table.BlocksPerPage {
		errs = append(errs, fmt.Errorf("-blocks-per-page: from 1 to %d", table.BlocksPerPage))
	}
	if cfg.reads < 0 || cfg.reads > 100 || cfg.depth < 1 || cfg.depth > 4096 {
		errs = append(errs, errors.New("-reads: from 0 to 100; -depth: from 1 to 4096"))
	}
	// Every latency is kept until it is counted.
	if cfg.during < time.Second || cfg.during > 10*time.Minute {
		errs = append(errs, errors.New("-time: from 1s to 10m"))
	}
	return cfg, errors.Join(errs...)
}

// pages is how many pages a volume has.
func (c *memoryConfig) pages() int64 { return int64(c.mapped) / int64(c.volumes) / pageBytes }

func (c *memoryConfig) writtenBytes() int64 {
	return c.pages() * int64(c.volumes*c.blocksPerPage) * storage.BlockSize
}

// runMemory says what is resident of one node with much mapped, in many volumes.
//
// What is real: the node, its volumes, each request, the log, every page of the tables and its way through cache, checkpoints and
// database. What is cheap: of each page, which is for 64 blocks (256 KiB), -blocks-per-page are written, 1 by default. In memory a page
// has the same size however many of its blocks are mapped, so what is resident is that of a full one. On disk a page has 12 bytes for
// each mapped block, so tables and data are smaller than those of full volumes; with 64 nothing is cheap any more.
func runMemory(ctx context.Context, cfg memoryConfig, w io.Writer) (err error) {
	dir, err := workDir(cfg.dir, roomFor(cfg.writtenBytes()/4))
	if err != nil {
		return err
	}
	if !cfg.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	device, err := diskOf(dir)
	if err != nil {
		return err
	}
	binary, err := filepath.Abs(cfg.storaged)
	if err != nil {
		return err
	}
	c, err := testcluster.New(testcluster.Config{Command: []string{binary}, Dir: dir, Nodes: 1})
	if err != nil {
		return err
	}
	m := mapper{cfg: &cfg, cluster: c, server: clusterServer(c, device)}
	defer func() { err = errors.Join(err, m.close(), stopCluster(c)) }()
	if err := m.start(ctx); err != nil {
		return err
	}
	// The first row is what the volumes take by themselves, attached, before anything of them is mapped.
	rows := []memoryRow{{BlocksPerPage: cfg.blocksPerPage, MappingMiB: float64(m.server.watchMemory()()) / mib}}
	fmt.Fprintf(w, "%s  %d volumes attached: %.0f MiB resident\n", time.Now().Format(time.TimeOnly), cfg.volumes, rows[0].MappingMiB)
	for _, volumes := range []int{cfg.volumes / 4, cfg.volumes / 2, cfg.volumes} {
		row, err := m.measure(ctx, volumes)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s  %d of %d volumes mapped: %.0f MiB resident while mapping, %.0f under random requests\n", time.Now().Format(time.TimeOnly), volumes, cfg.volumes, row.MappingMiB, row.RandomMiB)
		rows = append(rows, row)
		if err := writeRows(cfg.out, rows); err != nil {
			return err
		}
	}
	printMemory(w, rows)
	if cfg.plots == "" {
		return nil
	}
	if err := os.MkdirAll(cfg.plots, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cfg.plots, "memory.svg"), plotMemory(rows), 0o644)
}

func printMemory(w io.Writer, rows []memoryRow) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "volumes\tGiB mapped\tpages\tMiB of tables\tMiB resident, mapping\tMiB resident, random\trequests/s\tp50 us\tp99 us")
	for _, r := range rows {
		fmt.Fprintf(t, "%d\t%.1f\t%.0f\t%.1f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\n", r.Volumes, r.MappedBytes/(1<<30), r.Pages, r.TableBytes/mib,
			r.MappingMiB, r.RandomMiB, r.PerS, r.P50us, r.P99us)
	}
	_ = t.Flush() // to a terminal or a pipe: what is lost there is seen
}

func plotMemory(rows []memoryRow) []byte {
	c := chart{title: "A node with much mapped, in many volumes", xLabel: "GiB mapped",
		panels: panelsOf(memoryFigures, rows, func(r *memoryRow) float64 { return r.MappedBytes / (1 << 30) }, func(*memoryRow) string { return "one node" })}
	return c.svg()
}

// mapper is a node while its volumes are mapped.
type mapper struct {
	cfg     *memoryConfig
	cluster *testcluster.Cluster
	server  *server
	clients []*nbdclient.Client // of all volumes, in order
	mapped  int                 // volumes, the first ones
}

// start starts the node, creates all volumes and attaches them.
func (m *mapper) start(ctx context.Context) error {
	if err := m.cluster.Start(ctx); err != nil {
		return err
	}
	full, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := m.cluster.WaitFull(full); err != nil {
		return err
	}
	p := progressOf(ctx)
	defer p.begin("attaching volumes", m.cfg.volumes)()
	for i := range m.cfg.volumes {
		if err := m.cluster.CreateVolumeOver(ctx, mappedVolume(i), m.cfg.pages()*pageBytes, 0); err != nil {
			return err
		}
		c, err := nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: m.cluster.Node(0).NBD, Export: mappedVolume(i)})
		if err != nil {
			return err
		}
		m.clients = append(m.clients, c)
		p.ended()
	}
	return nil
}

func mappedVolume(i int) string { return fmt.Sprintf("mapped-%d", i) }

func (m *mapper) close() (err error) {
	for _, c := range m.clients {
		err = errors.Join(err, c.Close())
	}
	return err
}

// measure maps volumes until so many are, and then asks them at random.
func (m *mapper) measure(ctx context.Context, volumes int) (row memoryRow, err error) {
	pages := float64(m.cfg.pages()) * float64(volumes)
	row = memoryRow{Volumes: volumes, MappedBytes: pages * pageBytes, Pages: pages, BlocksPerPage: m.cfg.blocksPerPage}
	largest := m.server.watchMemory()
	err = m.mapUntil(ctx, volumes)
	row.MappingMiB = float64(largest()) / mib
	if err != nil {
		return row, err
	}
	largest = m.server.watchMemory()
	took, err := m.random(ctx)
	row.RandomMiB = float64(largest()) / mib
	if err != nil {
		return row, err
	}
	row.PerS = float64(len(took)) / m.cfg.during.Seconds()
	row.P50us, row.P99us = percentile(took, 50)/1e3, percentile(took, 99)/1e3
	row.TableBytes, err = readMetric(ctx, m.cluster.Node(0).HTTP, "storage_store_table_bytes")
	return row, err
}

// mapUntil writes further volumes, a few at a time.
func (m *mapper) mapUntil(ctx context.Context, volumes int) error {
	p, from := progressOf(ctx), m.mapped
	defer p.begin("mapping volumes", 1)()
	for m.mapped < volumes {
		p.note(float64(m.mapped-from)/float64(volumes-from), "")
		n := min(volumes-m.mapped, volumesAtOnce)
		if err := m.mapVolumes(ctx, m.clients[m.mapped:m.mapped+n]); err != nil {
			return err
		}
		m.mapped += n
	}
	return nil
}

// volumesAtOnce are mapped together, with writesAtOnce in flight each.
const volumesAtOnce, writesAtOnce = 16, 8

func (m *mapper) mapVolumes(ctx context.Context, clients []*nbdclient.Client) error {
	all, ctx := errgroup.WithContext(ctx)
	for v, c := range clients {
		for w := range writesAtOnce {
			all.Go(func() error {
				data := noise(m.cfg.blocksPerPage*storage.BlockSize, uint64(v*writesAtOnce+w))
				for page := int64(w); page < m.cfg.pages(); page += writesAtOnce {
					if err := c.WriteAt(ctx, data, page*pageBytes); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	return all.Wait()
}

// noise is so many bytes, not zeroes.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewPCG(seed, 1)
	for i := range b {
		b[i] = byte(r.Uint64()) | 1
	}
	return b
}

// random reads and writes mapped blocks of all volumes that are mapped, each as likely as any, and returns how long each request took.
func (m *mapper) random(ctx context.Context) ([]time.Duration, error) {
	until := time.Now().Add(m.cfg.during)
	took := make([][]time.Duration, m.cfg.depth)
	all, ctx := errgroup.WithContext(ctx)
	for i := range took {
		all.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(i), uint64(m.mapped)))
			write, read := noise(storage.BlockSize, uint64(i)), make([]byte, storage.BlockSize)
			for from := time.Now(); from.Before(until); from = time.Now() {
				c := m.clients[r.IntN(m.mapped)]
				at := r.Int64N(m.cfg.pages())*pageBytes + int64(r.IntN(m.cfg.blocksPerPage))*storage.BlockSize
				var err error
				if r.IntN(100) < m.cfg.reads {
					err = c.ReadAt(ctx, read, at)
				} else {
					err = c.WriteAt(ctx, write, at)
				}
				if err != nil {
					return err
				}
				took[i] = append(took[i], time.Since(from))
			}
			return nil
		})
	}
	err := all.Wait()
	sum := slices.Concat(took...)
	slices.Sort(sum)
	if err == nil && len(sum) == 0 {
		err = errors.New("no request was answered")
	}
	return sum, err
}

// percentile is the nearest rank, in nanoseconds, of ascending times; there is at least one.
func percentile(ascending []time.Duration, percent int) float64 {
	return float64(ascending[max(0, (len(ascending)*percent+99)/100-1)])
}
