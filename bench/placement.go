package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/placement"
	"github.com/storaged/storaged/server/placement/placementtest"
)

// placementConfig is what the flags of `bench placement` say.
type placementConfig struct {
	out, plots string
	nodes      []int
	zones      int
	fillPart   float64
	seed       uint64
}

// placementRow is what package placement makes of a cluster of so many nodes.
type placementRow struct {
	Nodes  int `json:"nodes"`
	Zones  int `json:"zones"`
	Groups int `json:"groups"`
	// Fullest and Emptiest are what the stores with the most and the fewest bytes hold, of the average.
	Fullest  float64 `json:"fullest"`
	Emptiest float64 `json:"emptiest"`
	// SharedZones is how many groups lie in fewer zones than they could.
	SharedZones int `json:"shared_zones"`
	// Added is how many nodes came then. GrowMoved is what was copied because of them, of the least that gives them their share.
	Added       int     `json:"added"`
	GrowMoved   float64 `json:"grow_moved"`
	GrowFullest float64 `json:"grow_fullest"`
	// LossMoved is what was copied when a node was lost, of what lay on it.
	LossMoved float64 `json:"loss_moved"`
	// LossTargets is how many nodes took it.
	LossTargets int `json:"loss_targets"`
	// TripleLoss is the part of all sets of three nodes whose loss at once loses data; RandomLoss is that of extents of 4 MiB that each lie
	// on three nodes at random.
	TripleLoss float64 `json:"triple_loss"`
	RandomLoss float64 `json:"random_loss"`
	// LookMs is what one look at all groups takes when nothing is to be done, MovesMs that for replicas to move. MovesTakingMs is the latter
	// while an empty node takes its first replica: all others have some for it.
	LookMs        float64 `json:"look_ms"`
	MovesMs       float64 `json:"moves_ms"`
	MovesTakingMs float64 `json:"moves_taking_ms"`
}

// storeBytes is the size of each store that is simulated.
const storeBytes = 4 << 40

func parsePlacementFlags(args []string) (cfg placementConfig, err error) {
	flags := flag.NewFlagSet("bench placement", flag.ContinueOnError)
	flags.StringVar(&cfg.out, "out", "bench/placement.json", "`file` for the rows")
	flags.StringVar(&cfg.plots, "plots", "", "`directory` for the plot, placement.svg; none if empty")
	nodes := flags.String("nodes", "3,4,6,10,30,100,300,1000", "`numbers` of nodes")
	flags.IntVar(&cfg.zones, "zones", 5, "`number` of zones from ten nodes on; one below")
	flags.Float64Var(&cfg.fillPart, "fill", 0.5, "`part` of the stores that is filled")
	flags.Uint64Var(&cfg.seed, "seed", 1, "`seed` of how much lives in each group")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	var errs []error
	for _, s := range strings.Split(*nodes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 3 || n > 1000 {
			errs = append(errs, fmt.Errorf("-nodes: %q is no number from 3 to 1000", s))
		}
		cfg.nodes = append(cfg.nodes, n)
	}
	if cfg.zones < 1 || cfg.zones > 100 {
		errs = append(errs, errors.New("-zones: from 1 to 100"))
	}
	if !(cfg.fillPart > 0 && cfg.fillPart <= 0.7) {
		errs = append(errs, errors.New("-fill: above 0, to 0.7: a node is to be lost"))
	}
	return cfg, errors.Join(errs...)
}

// runPlacement lets clusters of growing size place, grow by a tenth and lose a node, with the functions that storaged decides with. What lives in a
// group is between half and one and a half times the average, at random.
func runPlacement(ctx context.Context, cfg placementConfig, w io.Writer) error {
	var rows []placementRow
	for _, n := range cfg.nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := place(ctx, cfg, n)
		if err != nil {
			return fmt.Errorf("%d nodes: %w", n, err)
		}
		fmt.Fprintf(w, "%s  %d nodes, %d groups\n", time.Now().Format(time.TimeOnly), n, r.Groups)
		rows = append(rows, r)
		if err := writeRows(cfg.out, rows); err != nil {
			return err
		}
	}
	printPlacement(w, rows)
	if cfg.plots == "" {
		return nil
	}
	if err := os.MkdirAll(cfg.plots, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cfg.plots, "placement.svg"), plotPlacement(rows), 0o644)
}

func place(ctx context.Context, cfg placementConfig, n int) (r placementRow, err error) {
	zones := 1
	if n >= 10 {
		zones = cfg.zones
	}
	r.Nodes, r.Zones, r.Added = n, zones, max(1, n/10)
	c := placementtest.NewCluster(3)
	add := func(n int) {
		for range n {
			c.AddNode("zone "+strconv.Itoa(len(c.Nodes)%zones), storeBytes)
		}
	}
	settle := func(after string) {
		if e := c.Settle(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("after %s: %w", after, e))
		}
	}
	add(n)
	settle("the start")
	r.Groups = len(c.Groups)
	rng := rand.New(rand.NewPCG(cfg.seed, uint64(n)))
	average := cfg.fillPart * storeBytes * float64(n) / 3 / float64(r.Groups)
	for _, g := range c.Groups {
		c.Live[g.ID] = int64(average * (0.5 + rng.Float64()))
	}
	settle("filling")
	r.Fullest, r.Emptiest = evenness(c)
	r.TripleLoss, r.RandomLoss = tripleLoss(c)
	v := c.View()
	begin := time.Now()
	for _, g := range v.Groups {
		placement.Next(v, g)
	}
	r.LookMs = float64(time.Since(begin).Microseconds()) / 1000
	begin = time.Now()
	placement.ReplicaMoves(v)
	r.MovesMs = float64(time.Since(begin).Microseconds()) / 1000

	c.MovedBytes = 0
	add(1)
	v = takesOne(c)
	begin = time.Now()
	placement.ReplicaMoves(v)
	r.MovesTakingMs = float64(time.Since(begin).Microseconds()) / 1000
	add(r.Added - 1)
	settle("adding nodes")
	var live int64
	for _, b := range c.Live {
		live += b
	}
	r.GrowMoved = float64(c.MovedBytes) / (float64(3*live) * float64(r.Added) / float64(n+r.Added))
	r.GrowFullest, _ = evenness(c)
	r.SharedZones = sharedZones(c, zones)

	if n+r.Added > 3 {
		c.MovedBytes = 0
		lost, before := c.StoredBytes()[placementtest.StoreOf(1)], c.StoredBytes()
		c.Lose(1)
		settle("losing a node")
		r.LossMoved = float64(c.MovedBytes) / float64(max(lost, 1))
		for s, b := range c.StoredBytes() {
			if b > before[s] {
				r.LossTargets++
			}
		}
	}
	return r, err
}

// takesOne returns the view of a cluster whose last node, which is empty, takes the replica of the first group from another one.
func takesOne(c *placementtest.Cluster) placement.View {
	v := c.View()
	last := c.Nodes[len(c.Nodes)-1]
	v.Groups = slices.Clone(v.Groups)
	g := &v.Groups[0]
	g.Replicas = append(slices.Clone(g.Replicas), storage.Replica{Node: last.ID, Role: storage.RolePulling,
		Key: storage.ReplicaKey{Store: last.Stores[0].ID, Incarnation: g.LastIncarnation + 1}})
	g.Replicas[0].Role = storage.RoleLeaving
	return v.Indexed()
}

// evenness returns what the fullest and the emptiest store hold, of the average.
func evenness(c *placementtest.Cluster) (most, least float64) {
	held := c.StoredBytes()
	var sum int64
	lo, hi := int64(1<<62), int64(0)
	for _, n := range c.Nodes {
		b := held[n.Stores[0].ID]
		sum, lo, hi = sum+b, min(lo, b), max(hi, b)
	}
	average := float64(sum) / float64(len(c.Nodes))
	return float64(hi) / average, float64(lo) / average
}

func sharedZones(c *placementtest.Cluster, zones int) (n int) {
	for _, g := range c.Groups {
		in := map[string]bool{}
		for _, r := range g.Replicas {
			in[c.Nodes[r.Node-1].Zone] = true
		}
		if len(in) < min(zones, len(g.Replicas)) {
			n++
		}
	}
	return n
}

// tripleLoss returns which part of all sets of three nodes holds all replicas of a group, and how likely one holds all copies of an extent if
// each lies on three nodes at random. It counts node sets ("copysets", Cidon et al., USENIX ATC 2013).
func tripleLoss(c *placementtest.Cluster) (groups, random float64) {
	sets := map[[3]storage.NodeID]bool{}
	var live int64
	for _, g := range c.Groups {
		live += c.Live[g.ID]
		set := [3]storage.NodeID{}
		for i, r := range g.Replicas {
			set[i] = r.Node
		}
		if set[0] > set[1] {
			set[0], set[1] = set[1], set[0]
		}
		if set[1] > set[2] {
			set[1], set[2] = set[2], set[1]
		}
		if set[0] > set[1] {
			set[0], set[1] = set[1], set[0]
		}
		sets[set] = true
	}
	all, _ := new(big.Float).SetInt(new(big.Int).Binomial(int64(len(c.Nodes)), 3)).Float64()
	extents := float64(live) / storage.ExtentSize
	none := 1.0 // that no extent lies on a given set of three
	for p := 1 - 1/all; extents >= 1; p, extents = p*p, extents/2 {
		if int64(extents)%2 == 1 {
			none *= p
		}
	}
	return float64(len(sets)) / all, 1 - none
}

func printPlacement(w io.Writer, rows []placementRow) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "nodes\tgroups\tfullest\temptiest\tshare a zone\tadded\tmoved of least\tfullest then\tlost: moved of least\tto nodes\ttriples that lose\tat random\tms a look\tfor moves\tfor moves, one taking")
	for _, r := range rows {
		fmt.Fprintf(t, "%d\t%d\t%.2f\t%.2f\t%d\t%d\t%.2f\t%.2f\t%.2f\t%d\t%.4g %%\t%.4g %%\t%.1f\t%.1f\t%.1f\n", r.Nodes, r.Groups, r.Fullest, r.Emptiest, r.SharedZones, r.Added, r.GrowMoved,
			r.GrowFullest, r.LossMoved, r.LossTargets, 100*r.TripleLoss, 100*r.RandomLoss, r.LookMs, r.MovesMs, r.MovesTakingMs)
	}
	_ = t.Flush() // to a terminal or a pipe: what is lost there is seen
}

func plotPlacement(rows []placementRow) []byte {
	all := func(name string, of func(*placementRow) float64) []panel {
		return panelsOf([]figureOf[placementRow]{{name, of}}, rows, func(r *placementRow) float64 { return float64(r.Nodes) }, func(*placementRow) string { return "storaged" })
	}
	c := chart{title: "Where replicas go, simulated with the functions that decide it", xLabel: "nodes", logX: true}
	c.panels = append(c.panels, all("fullest store, of the average", func(r *placementRow) float64 { return r.Fullest })...)
	c.panels = append(c.panels, all("copied after a tenth more nodes, of the least", func(r *placementRow) float64 { return r.GrowMoved })...)
	c.panels = append(c.panels, all("copied after the loss of a node, of the least", func(r *placementRow) float64 { return r.LossMoved })...)
	c.panels = append(c.panels, all("percent of the sets of three nodes whose loss loses data", func(r *placementRow) float64 { return 100 * r.TripleLoss })...)
	return c.svg()
}
