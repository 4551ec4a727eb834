package hostgateway

import (
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/internal/tlsfiles"
)

// Config is all that an operator sets of a host's gateway. Flags, the configuration file, the environment and
// docs/storaged.md are made from this one struct, as those of a node are from server.Config.
type Config struct {
	Endpoints     string `flag:"endpoint" help:"API addresses of nodes (host or host:port), separated by commas; any that answers will do, and the other nodes are learned from it"`
	Cluster       string `flag:"cluster" help:"id of the cluster (storagectl status shows it); no other one is asked for anything (empty: that of the endpoints, or of this host's attachments)"`
	StateDir      string `flag:"state-dir" default:"/var/lib/storaged-gateway" help:"directory where this host's attachments are written down; made if it does not exist"`
	Socket        string `flag:"socket" default:"/run/storaged/gateway.sock" help:"unix socket that storagectl attach and the CSI node service speak to"`
	LinkDir       string `flag:"link-dir" default:"/dev/storaged" help:"directory of links from the names of attached volumes to their devices; empty: none"`
	HostID        string `flag:"host-id" help:"what the cluster knows this host as; must be unique (default: the host's name and a random number, kept in the state directory)"`
	Zone          string `flag:"zone" help:"failure domain of this host, for orchestrators"`
	ListenHTTP    string `flag:"listen-http" help:"address of metrics and health (/metrics, /healthz); off when empty"`
	VolumeLatency string `flag:"volume-latency" help:"volumes whose latencies the metrics keep by volume, as histograms (42 series each): names or patterns (db-*), separated by commas; at most 32 volumes at once, the first that are opened"`
	PeerCert      string `flag:"peer-tls-cert" help:"certificate of this host for the nodes (PEM), with the organizational unit storaged-gateway; needed when the nodes have one"`
	PeerKey       string `flag:"peer-tls-key" help:"its key (PEM)"`
	PeerCA        string `flag:"peer-tls-ca" help:"certificates (PEM) that the nodes' certificates must be signed by"`

	API tlsfiles.Client

	NBDResend time.Duration `flag:"nbd-resend-after" default:"200ms" help:"how long an NBD request is unanswered before the kernel looks whether the gateway was replaced, and sends it again if so; it logs a line for every request that it looks at"`
	NBDDead   time.Duration `flag:"nbd-dead-timeout" default:"1h" help:"for how long a kernel NBD device waits for a gateway to come back before its requests fail"`

	KeeperOnHost bool `flag:"keeper-on-host" help:"for a gateway in a container: what keeps FUSE devices alive while the gateway is restarted leaves the container, into the mount namespace and a control group of the host, and outlives it; needs the host's processes (hostPID), all privileges and the same path of --state-dir on both sides"`

	Buffers size.Bytes `flag:"buffers" default:"128MiB" help:"payloads of requests that all FUSE devices, and all kernel NBD devices, work on at a time; with what else the gateway holds of them it uses about twice that while the cluster stands still"`

	LogLevel  string `flag:"log-level" default:"info" help:"debug, info, warn or error"`
	LogFormat string `flag:"log-format" default:"text" help:"text or json"`

	HostDownTimeout time.Duration `flag:"host-down-timeout" default:"30s" help:"when the host goes down (storaged gateway host-down): for how long the cluster may answer nothing before what waits for it gets errors"`

	ShutdownTimeout time.Duration `flag:"shutdown-timeout" default:"10s" help:"how long a stopping gateway waits for requests that are under way; the rest waits for the next one"`
}

// Validate returns every problem at once, each with the flag's name.
func (c *Config) Validate() error {
	var p storage.Problems
	p.Check(len(c.endpoints()) > 0, "--endpoint: is missing: name a node, better several")
	for _, e := range c.endpoints() {
		_, err := client.ParseEndpoint(e)
		p.Check(err == nil, "--endpoint: %v", err)
	}
	_, err := storage.ParseClusterID(c.Cluster)
	p.Check(c.Cluster == "" || err == nil, "--cluster: %v; storagectl status shows it", err)
	p.Check(c.StateDir != "", "--state-dir: is missing: say where this host's attachments are written down")
	p.Check(c.Socket != "", "--socket: is missing")
	p.Check(len(c.HostID) <= storage.MaxHolderBytes && strings.Trim(c.HostID, hostIDCharacters) == "" && !strings.HasPrefix(c.HostID, "nbd:"),
		"--host-id: %q: use at most %d letters, digits and any of -._:/@, beginning with a letter or digit, not with nbd:", c.HostID, storage.MaxHolderBytes)
	_, _, err = net.SplitHostPort(c.ListenHTTP)
	p.Check(c.ListenHTTP == "" || err == nil, "--listen-http: %q is no host:port", c.ListenHTTP)
	_, err = volume.ParsePatterns(c.VolumeLatency)
	p.Add(err)
	p.Add(tlsfiles.CheckPeer(c.PeerCert, c.PeerKey, c.PeerCA))
	p.Add(c.API.Validate())
	p.Check(c.NBDResend >= 100*time.Millisecond && c.NBDResend <= 30*time.Second, "--nbd-resend-after: %v: use 100ms to 30s", c.NBDResend)
	p.Check(c.Buffers >= 64<<20 && c.Buffers <= 16<<30, "--buffers: %v: use 64MiB to 16GiB", c.Buffers)
	p.Check(c.HostDownTimeout >= time.Second && c.HostDownTimeout <= 10*time.Minute, "--host-down-timeout: %v: use 1s to 10m", c.HostDownTimeout)
	p.Check(c.NBDDead >= time.Second, "--nbd-dead-timeout: %v: use at least 1s", c.NBDDead)
	return p.Err("configuration", "")
}

const hostIDCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:/@"

func (c *Config) endpoints() (list []string) {
	for _, e := range strings.Split(c.Endpoints, ",") {
		if e = strings.TrimSpace(e); e != "" {
			list = append(list, e)
		}
	}
	return list
}

// environment is what the gateway has besides its settings.
type environment struct {
	logger  *slog.Logger
	metrics *prometheus.Registry
	// helper is the command that runs attach.Helper.
	helper []string
}
