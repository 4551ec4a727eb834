package server

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/hostport"
	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/internal/tlsfiles"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
)

// Config is all that an operator sets of a node. Flags, the configuration file (YAML, the keys are the flags' names), the
// environment (STORAGED_DATA_DIR for --data-dir) and docs/storaged.md are made from this one struct. The tags are the flag's
// name, its default and its help.
type Config struct {
	DataDir   string `flag:"data-dir" help:"directory of this node's data; made if it does not exist"`
	Name      string `flag:"name" help:"name of this node, as people see it (default: the host's name)"`
	Zone      string `flag:"zone" help:"failure domain of this node (rack, room, site); replicas of a group lie in different zones where possible"`
	Bootstrap bool   `flag:"bootstrap" help:"with an empty data directory: make a new cluster. Together with --join, the same list on all nodes, the first node of the list makes it once all others have answered that they have none either. With a directory that is a node already it does nothing"`
	Join      string `flag:"join" help:"peer addresses (host or host:port, separated by commas) of nodes of the cluster to join; a node that has joined finds the others there, should all addresses have changed"`

	ListenPeer    string `flag:"listen-peer" default:":7001" help:"address for the other nodes (Raft, data and repair)"`
	ListenAPI     string `flag:"listen-api" default:":7000" help:"address of the gRPC API that storagectl speaks"`
	ListenNBD     string `flag:"listen-nbd" default:":10809" help:"address for NBD clients"`
	ListenHTTP    string `flag:"listen-http" default:":7002" help:"address of metrics and health (/metrics, /livez, /healthz, /readyz)"`
	VolumeLatency string `flag:"volume-latency" help:"volumes whose latencies the metrics keep by volume, as histograms (42 series each): names or patterns (db-*), separated by commas; at most 32 volumes at once, the first that are opened"`
	NBDSocket     string `flag:"nbd-socket" help:"also serve NBD on this unix socket"`
	Advertise     string `flag:"advertise" help:"host name or address under which others reach this node (default: the listening address, or the host's name when that is a wildcard)"`
	Pprof         string `flag:"listen-pprof" help:"address of the Go profiler; off when empty: it must not be reachable by strangers"`

	CapacityBytes  size.Bytes    `flag:"capacity" help:"how much of the disk this store may use (default: all of the file system)"`
	Compact        bool          `flag:"compact" default:"true" help:"move what lives out of segments that are full of overwritten and discarded blocks, so that overwrites never fill the store; the reserve is 12 segments at least, and what lives takes at most nine tenths of the rest"`
	ReserveBytes   size.Bytes    `flag:"reserve" default:"1GiB" help:"free space below which allocating writes are refused; discards and deletes still work; more is kept where segments written ahead and the tables may need more"`
	ScrubInterval  time.Duration `flag:"scrub-interval" default:"336h" help:"how often all that the store holds is read and compared with its checksums; a pass is spread over this time, between 1 and 64 MiB a second, and gives way to clients. Blocks that the disk does not give back as they were written are written anew from another replica. 0: never, but for segments in which something could not be read"`
	SegmentBytes   size.Bytes    `flag:"segment-size" default:"64MiB" help:"size of the log's segments, 2MiB to 1GiB; fixed when the store is made"`
	ProvisionLimit int           `flag:"provision-limit" default:"1000" help:"how large all volumes together may be, in percent of the data that the stores of the cluster hold with all copies; a volume that is larger than the stores by itself is refused too. 0: no limit. Requests to this node are held to it: set it alike on all nodes"`
	FreeSegments   int           `flag:"free-segments" default:"8" help:"segments that are written ahead of time"`
	CacheBytes     size.Bytes    `flag:"cache" default:"64MiB" help:"memory for extent tables"`
	LogCacheBytes  size.Bytes    `flag:"log-cache" default:"48MiB" help:"memory for recent log entries"`

	Replicas         int           `flag:"replicas" default:"3" help:"copies of every extent; set when the cluster is made"`
	Groups           int           `flag:"groups" default:"8" help:"replication groups to start with; set when the cluster is made"`
	Rebalance        bool          `flag:"rebalance" default:"true" help:"add groups as nodes are added, and move replicas so that stores fill evenly, a few at a time. What the catalog's leader says counts: set it alike on all nodes"`
	RepairAfter      time.Duration `flag:"repair-after" default:"5m" help:"how long a node may be down until the others make its replicas anew, so that all data has all its copies again; a node that is back later drops what it holds of them. 0: never by itself, only after a node was removed. What the catalog's leader says counts: set it alike on all nodes"`
	HeartbeatTimeout time.Duration `flag:"heartbeat-timeout" default:"500ms" help:"how long a leader may be silent; one value per cluster, set when it is made"`
	ReadMode         string        `flag:"read-mode" default:"lease" help:"lease: a leader answers reads while a majority has lately confirmed it; quorum: it asks a majority for every read"`
	MaxAppendEntries int           `flag:"max-append-entries" default:"128" help:"entries in one replication request"`

	NBDCert        string `flag:"nbd-tls-cert" help:"certificate of the NBD server (PEM); with it clients may, and with --nbd-tls-require must, use TLS"`
	NBDKey         string `flag:"nbd-tls-key" help:"its key (PEM)"`
	NBDClientCA    string `flag:"nbd-tls-client-ca" help:"certificates (PEM) that a client's certificate must be signed by; refuses clients without TLS, like --nbd-tls-require; without it clients need none"`
	NBDTLSRequire  bool   `flag:"nbd-tls-require" help:"refuse NBD clients that do not start TLS"`
	APICert        string `flag:"api-tls-cert" help:"certificate of the API (PEM); with it all clients of the API must use TLS"`
	APIKey         string `flag:"api-tls-key" help:"its key (PEM)"`
	APIClientCA    string `flag:"api-tls-client-ca" help:"certificates (PEM) that a certificate of the API's clients must be signed by; without it clients need none"`
	PeerCert       string `flag:"peer-tls-cert" help:"certificate of this node for other nodes (PEM); together with --peer-tls-key and --peer-tls-ca all traffic between nodes is mutually authenticated TLS"`
	PeerKey        string `flag:"peer-tls-key" help:"its key (PEM)"`
	PeerCA         string `flag:"peer-tls-ca" help:"certificates (PEM) that nodes' certificates must be signed by"`
	NBDConnections int    `flag:"nbd-max-connections" default:"4096" help:"NBD connections served at once"`

	LogLevel  string `flag:"log-level" default:"info" help:"debug, info, warn or error"`
	LogFormat string `flag:"log-format" default:"text" help:"text or json"`

	ShutdownTimeout time.Duration `flag:"shutdown-timeout" default:"10s" help:"how long a stopping node waits for requests and hands leadership over"`
}

// leastScrub and maxScrub bound Config.ScrubInterval.
const leastScrub, maxScrub = time.Second, 366 * 24 * time.Hour

func mayScrub(interval time.Duration) bool {
	return interval == 0 || interval >= leastScrub && interval <= maxScrub
}

// maxRepairAfter bounds Config.RepairAfter; what is meant to be longer is meant to be never.
const maxRepairAfter = 30 * 24 * time.Hour

// Validate returns every problem at once, each with the flag's name.
func (c *Config) Validate() error {
	var p storage.Problems
	bad := func(flag, format string, args ...any) { p.Check(false, "--%s: %s", flag, fmt.Sprintf(format, args...)) }
	if c.DataDir == "" {
		bad("data-dir", "is missing: say where this node keeps its data")
	}
	for _, a := range []struct{ flag, addr string }{{"listen-peer", c.ListenPeer}, {"listen-api", c.ListenAPI},
		{"listen-nbd", c.ListenNBD}, {"listen-http", c.ListenHTTP}} {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			bad(a.flag, "%q is no host:port", a.addr)
		}
	}
	if _, err := c.joins(); err != nil {
		bad("join", "%v", err)
	}
	if c.Advertise != "" {
		if _, err := hostport.Host(c.Advertise); err != nil {
			bad("advertise", "%v", err)
		}
	}
	if len(c.Name) > 63 || strings.ContainsAny(c.Name, " \t\n/") {
		bad("name", "%q: use at most 63 characters and no blanks or slashes", c.Name)
	}
	if c.Replicas < 1 || c.Replicas > 7 || c.Replicas%2 == 0 {
		bad("replicas", "%d: use 1, 3, 5 or 7", c.Replicas)
	}
	if c.Groups < 1 || c.Groups > 256 || c.Groups&(c.Groups-1) != 0 {
		bad("groups", "%d: use a power of two up to 256", c.Groups)
	}
	if c.HeartbeatTimeout < 50*time.Millisecond || c.HeartbeatTimeout > 10*time.Second {
		bad("heartbeat-timeout", "%v: use 50ms to 10s", c.HeartbeatTimeout)
	}
	if c.RepairAfter != 0 && (c.RepairAfter < control.DownAfter || c.RepairAfter > maxRepairAfter) {
		bad("repair-after", "%v: use %v to %v, or 0 for never", c.RepairAfter, control.DownAfter, maxRepairAfter)
	}
	if !mayScrub(c.ScrubInterval) {
		bad("scrub-interval", "%v: use %v to %v, or 0 for never", c.ScrubInterval, leastScrub, maxScrub)
	}
	if c.ReadMode != "lease" && c.ReadMode != "quorum" {
		bad("read-mode", "%q: use lease or quorum", c.ReadMode)
	}
	if c.MaxAppendEntries < 16 || c.MaxAppendEntries > 1024 {
		bad("max-append-entries", "%d: use 16 to 1024", c.MaxAppendEntries)
	}
	c.checkTLS(bad)
	_, err := volume.ParsePatterns(c.VolumeLatency)
	p.Add(err)
	p.Add(tlsfiles.CheckPeer(c.PeerCert, c.PeerKey, c.PeerCA))
	if c.ProvisionLimit < 0 || c.ProvisionLimit > catalog.MaxProvisionPercent {
		bad("provision-limit", "%d: use 0 to %d (percent)", c.ProvisionLimit, catalog.MaxProvisionPercent)
	}
	if c.ReserveBytes < 0 || c.CapacityBytes < 0 {
		bad("reserve", "sizes are not negative")
	}
	if c.SegmentBytes%(4<<10) != 0 || c.SegmentBytes < leastSegment || c.SegmentBytes > 1<<30 {
		bad("segment-size", "%v: use a multiple of 4KiB from %v to 1GiB; a segment holds the largest entry of the log", c.SegmentBytes, leastSegment)
	}
	reserve := max(c.ReserveBytes, size.Bytes(room.LeastReserve(c.FreeSegments, int64(c.SegmentBytes), c.Compact)))
	if least := reserve + 2*c.SegmentBytes; c.CapacityBytes > 0 && c.CapacityBytes < least {
		bad("capacity", "%v is less than the reserve (%v: --reserve, or what --free-segments and the tables need) and two segments (--segment-size %v): no write would ever be taken; use at least %v",
			c.CapacityBytes, reserve, c.SegmentBytes, least)
	}
	return p.Err("configuration", "")
}

// checkTLS says what is wrong with the flags of certificates.
func (c *Config) checkTLS(bad func(flag, format string, args ...any)) {
	if (c.NBDCert == "") != (c.NBDKey == "") {
		bad("nbd-tls-cert", "goes together with --nbd-tls-key")
	}
	if (c.APICert == "") != (c.APIKey == "") {
		bad("api-tls-cert", "goes together with --api-tls-key")
	}
	if c.APIClientCA != "" && c.APICert == "" {
		bad("api-tls-client-ca", "needs --api-tls-cert and --api-tls-key: without TLS nobody is asked for a certificate")
	}
	if c.NBDClientCA != "" && c.NBDCert == "" {
		bad("nbd-tls-client-ca", "needs --nbd-tls-cert and --nbd-tls-key: without TLS nobody is asked for a certificate")
	}
	if c.NBDTLSRequire && c.NBDCert == "" {
		bad("nbd-tls-require", "needs --nbd-tls-cert and --nbd-tls-key")
	}
}

// leastSegment is the smallest --segment-size: an entry of the log, which carries up to storage.MaxEntryPayloadBytes, lies in one
// segment. A group with an entry that fits into none would be led by nobody for long.
const leastSegment = size.Bytes(2 * storage.MaxEntryPayloadBytes)

// setDefaults fills in what the machine decides.
func (c *Config) setDefaults() error {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		c.Name, _, _ = strings.Cut(host, ".")
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return err
	}
	c.DataDir = dir
	return nil
}

// peerPort is the port of an address in --join that names none.
const peerPort = "7001"

// joins returns the addresses of --join, with their ports.
func (c *Config) joins() (addrs []string, err error) {
	if c.Join == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(c.Join, ",") {
		addr, err := hostport.Parse(strings.TrimSpace(text), peerPort)
		if err != nil {
			return nil, fmt.Errorf("%w (addresses are separated by commas: a,b,c)", err)
		}
		if slices.Contains(addrs, addr) {
			return nil, fmt.Errorf("%s is in it twice", addr)
		}
		addrs = append(addrs, addr)
	}
	if len(addrs) > maxJoins {
		return nil, fmt.Errorf("%d addresses; use at most %d", len(addrs), maxJoins)
	}
	return addrs, nil
}

const maxJoins = 64

// advertised returns the address under which others reach a listener.
func (c *Config) advertised(listening net.Addr) string {
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return listening.String()
	}
	if name, err := hostport.Host(c.Advertise); err == nil {
		return net.JoinHostPort(name, port)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

func (c *Config) nbdTLS() (*tls.Config, error) {
	return tlsfiles.Server("nbd", c.NBDCert, c.NBDKey, c.NBDClientCA)
}

func (c *Config) apiTLS() (*tls.Config, error) {
	return tlsfiles.Server("api", c.APICert, c.APIKey, c.APIClientCA)
}

func (c *Config) peerTLS() (*tls.Config, error) {
	return tlsfiles.Peer(c.PeerCert, c.PeerKey, c.PeerCA)
}
