package control

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// Method numbers what one Controller asks of another; they are peer methods.
type Method uint16

// The methods.
const (
	MethodPropose Method = 48 // apply a command
	MethodRead    Method = 49 // an index that a linearizable read waits for; the leader's reports
	MethodReport  Method = 50 // a NodeReport
	MethodJoin    Method = 54 // become a node
)

// Peers carries requests to other nodes' Controllers, where Serve answers them. Call returns when the answer is there
// or ctx is done; KindUnavailable when the outcome is not known.
type Peers interface {
	Call(ctx context.Context, to storage.NodeID, m Method, body []byte) ([]byte, error)
}

// Config makes a Controller. Fields without a remark are required.
type Config struct {
	// Dir holds the identity, the address book, and the catalog's log, votes and snapshots.
	Dir string
	// FS is where identity and address book lie; default vfs.Default. Raft's files are the operating system's.
	FS vfs.FS
	// Stores replaces Raft's files, for tests; nil: bolt and snapshot files in Dir.
	Stores *RaftStores

	// Transport carries the catalog's Raft messages. Close closes it.
	Transport runner.Carrier
	// Peers reaches other nodes' Controllers.
	Peers Peers
	// Actions carries out what the reconcilers decide.
	Actions Actions

	// OnFailure is told, once, that the disk of the catalog's log has failed for good: Run ends, and the transport should
	// fall silent, so that another node leads. It must not block. Default: nothing.
	OnFailure func(error)

	// Self is what the node says about itself; the catalog is brought in step with it. Name, Peer address and stores.
	Self catalog.AddNode
	// Report says how the node is; it is called every ReportInterval and must not block.
	Report func() placement.NodeReport

	// CommitTimeout is how long followers learn late of the last commit. Default 100 ms.
	CommitTimeout time.Duration
	// ReportInterval is the time between a node's reports. Default 1 s.
	ReportInterval time.Duration
	// ReconcileInterval is the longest time between two looks at the cluster; changes are looked at at once.
	// Default 1 s.
	ReconcileInterval time.Duration
	// SuspectAfter and DownAfter are the silences after which a node is suspect, and down. Defaults 3 s and 15 s.
	SuspectAfter, DownAfter time.Duration
	// RepairAfter is the silence after which a node's voters are replaced elsewhere (placement.Away). 0: never.
	RepairAfter time.Duration
	// Rebalance: groups are added as nodes are, and replicas move so that stores fill evenly (placement.ReplicaMoves).
	Rebalance bool
	// SessionTimeout is how long a session lives that no gateway's report names. Default 30 s.
	SessionTimeout time.Duration
	// BalanceCooldown is the time between two moves of one group's leader, and after a node came back before it is
	// given leaders, and between two looks for replicas to move. Default 10 s.
	BalanceCooldown time.Duration
	// RequestTimeout bounds one attempt of a request to the leader, and an order. First attempts wait for two
	// heartbeat timeouts only. Default 5 s.
	RequestTimeout time.Duration
	// GroupTimeout bounds one attempt to have a group refuse former holders of a volume. Default 1.5 s.
	GroupTimeout time.Duration
	// CreateTimeout is for how long the creation of a replica may get no further, which pulls all that the group holds and takes as long
	// as it takes. It is longer than a node itself waits (a minute), which says why. Default 90 s.
	CreateTimeout time.Duration
	// MaxTasks bounds the orders on their way. Default 32.
	MaxTasks int
	// SnapshotThreshold is the number of log entries after which the catalog writes a snapshot. Default 4096.
	SnapshotThreshold uint64

	Logger  *slog.Logger          // default: discard
	Metrics prometheus.Registerer // default: none
}

// DownAfter is the default of Config.DownAfter.
const DownAfter = 15 * time.Second

// RaftStores are where Raft keeps its log, its votes and its snapshots.
type RaftStores struct {
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
}

func (c *Config) setDefaults() {
	c.CommitTimeout = cmp.Or(c.CommitTimeout, 100*time.Millisecond)
	c.ReportInterval = cmp.Or(c.ReportInterval, time.Second)
	c.ReconcileInterval = cmp.Or(c.ReconcileInterval, time.Second)
	c.SuspectAfter = cmp.Or(c.SuspectAfter, 3*time.Second)
	c.DownAfter = cmp.Or(c.DownAfter, DownAfter)
	c.SessionTimeout = cmp.Or(c.SessionTimeout, 30*time.Second)
	c.BalanceCooldown = cmp.Or(c.BalanceCooldown, 10*time.Second)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, 5*time.Second)
	c.CreateTimeout = cmp.Or(c.CreateTimeout, 90*time.Second)
	c.GroupTimeout = cmp.Or(c.GroupTimeout, 1500*time.Millisecond)
	c.MaxTasks = cmp.Or(c.MaxTasks, 32)
	c.SnapshotThreshold = cmp.Or(c.SnapshotThreshold, 4096)
	if c.OnFailure == nil {
		c.OnFailure = func(error) {}
	}
	if c.FS == nil {
		c.FS = vfs.Default
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// Validate returns every problem at once.
func (c *Config) Validate() error {
	var p storage.Problems
	p.Check(c.Dir != "", "Dir is empty")
	p.Check(c.Transport != nil, "Transport is missing")
	p.Check(c.Peers != nil, "Peers is missing")
	p.Check(c.Actions != nil, "Actions is missing")
	p.Check(c.Report != nil, "Report is missing")
	p.Check(c.MaxTasks >= 0, "MaxTasks is negative")
	p.Check(c.DownAfter >= c.SuspectAfter, "DownAfter (%v) is below SuspectAfter (%v)", c.DownAfter, c.SuspectAfter)
	p.Check(c.RepairAfter == 0 || c.RepairAfter >= c.DownAfter, "RepairAfter (%v) is below DownAfter (%v)", c.RepairAfter, c.DownAfter)
	p.Check(c.SuspectAfter >= 2*c.ReportInterval, "SuspectAfter (%v) is below two report intervals (%v)", c.SuspectAfter, c.ReportInterval)
	_, err := catalog.Encode(c.Self)
	p.Add(err)
	return p.Err("open catalog", c.Dir)
}

func (c *Config) path(name string) string { return filepath.Join(c.Dir, name) }
