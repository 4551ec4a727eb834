package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/internal/tlsfiles"
)

// settings say where the cluster is. Every setting comes from its flag, else its environment variable, else the file,
// else its default.
type settings struct {
	Endpoints []string
	Cluster   storage.ClusterID // zero: whichever answers
	NBD       string
	NBDTLS    bool
	TLS       tlsfiles.Client
	Timeout   time.Duration
	// from says where Endpoints come from: "--endpoint", "STORAGECTL_ENDPOINTS", a file's path, "default".
	from string
}

// file is the layout of the configuration file.
type file struct {
	Endpoints []string `yaml:"endpoints"`
	Cluster   string   `yaml:"cluster"`
	NBD       string   `yaml:"nbd"`
	NBDTLS    bool     `yaml:"nbd_tls"`
	Timeout   string   `yaml:"timeout"`
	TLS       struct {
		Enabled    bool   `yaml:"enabled"`
		CA         string `yaml:"ca"`
		Cert       string `yaml:"cert"`
		Key        string `yaml:"key"`
		ServerName string `yaml:"server_name"`
	} `yaml:"tls"`
}

// maxConfigBytes bounds the configuration file.
const maxConfigBytes = 1 << 20

// globalFlags are those of every command.
type globalFlags struct {
	endpoints            []string
	nbd, config, cluster string
	tls                  tlsfiles.Client
	nbdTLS               bool
	timeout              time.Duration
	output               string
}

func (f *globalFlags) register(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringSliceVar(&f.endpoints, "endpoint", nil, "API of a node, `HOST[:PORT]`; repeat it or separate by commas to name several ($STORAGECTL_ENDPOINTS)")
	flags.StringVar(&f.cluster, "cluster", "", "`ID` of the cluster that is meant: endpoints of another one are asked for nothing ($STORAGECTL_CLUSTER)")
	flags.StringVar(&f.nbd, "nbd", "", "NBD server to use, `ADDRESS` is HOST[:PORT] or unix:PATH; otherwise the cluster is asked ($STORAGECTL_NBD)")
	flags.BoolVar(&f.nbdTLS, "nbd-tls", false, "speak TLS to the NBD server ($STORAGECTL_NBD_TLS)")
	flags.BoolVar(&f.tls.Enabled, "tls", false, "speak TLS to the API; implied by the flags for certificates ($STORAGECTL_TLS)")
	flags.StringVar(&f.tls.CA, "tls-ca", "", "PEM `FILE` of the authorities that sign the nodes' certificates ($STORAGECTL_TLS_CA)")
	flags.StringVar(&f.tls.Cert, "tls-cert", "", "PEM `FILE` of the own certificate ($STORAGECTL_TLS_CERT)")
	flags.StringVar(&f.tls.Key, "tls-key", "", "PEM `FILE` of the own key ($STORAGECTL_TLS_KEY)")
	flags.StringVar(&f.tls.ServerName, "tls-server-name", "", "`NAME` in the nodes' certificates, when it is not the endpoint's ($STORAGECTL_TLS_SERVER_NAME)")
	flags.DurationVar(&f.timeout, "timeout", 0, "patience for one request to the cluster (default 10s; $STORAGECTL_TIMEOUT)")
	flags.StringVar(&f.config, "config", "", "configuration `FILE` (default ~/.config/storagectl/config.yaml; $STORAGECTL_CONFIG)")
	flags.StringVarP(&f.output, "output", "o", "table", "`FORM`: table, wide, json or yaml")
}

// resolve fills a.settings. Problems of all sources are reported at once.
func (a *app) resolve() error {
	var c file
	path, explicit := a.configPath()
	var p storage.Problems
	p.Add(c.read(path, explicit))
	f, s := a.flags, settings{from: "the default"}
	yes := func(flag bool, variable string, inFile bool) bool {
		v := a.getenv(variable)
		p.Check(slices.Contains([]string{"", "0", "false", "1", "true"}, v), "%s is %q; write 1 or 0", variable, v)
		return flag || v == "1" || v == "true" || v == "" && inFile
	}
	switch variable := a.getenv("STORAGECTL_ENDPOINTS"); {
	case len(f.endpoints) > 0:
		s.Endpoints, s.from = f.endpoints, "--endpoint"
	case variable != "":
		s.Endpoints, s.from = strings.Split(variable, ","), "STORAGECTL_ENDPOINTS"
	case len(c.Endpoints) > 0:
		s.Endpoints, s.from = c.Endpoints, path
	default:
		s.Endpoints = []string{"127.0.0.1:" + client.DefaultPort}
	}
	for _, e := range s.Endpoints {
		_, err := client.ParseEndpoint(e)
		p.Check(err == nil, "from %s: %w", s.from, err)
	}
	if text := cmp.Or(f.cluster, a.getenv("STORAGECTL_CLUSTER"), c.Cluster); text != "" {
		var err error
		s.Cluster, err = storage.ParseClusterID(text)
		p.Check(err == nil, "the cluster %q is no id; storagectl status shows it: %w", text, err)
	}
	s.NBD = cmp.Or(f.nbd, a.getenv("STORAGECTL_NBD"), c.NBD)
	s.NBDTLS = yes(f.nbdTLS, "STORAGECTL_NBD_TLS", c.NBDTLS)
	s.TLS = tlsfiles.Client{
		Enabled:    yes(f.tls.Enabled, "STORAGECTL_TLS", c.TLS.Enabled),
		CA:         cmp.Or(f.tls.CA, a.getenv("STORAGECTL_TLS_CA"), c.TLS.CA),
		Cert:       cmp.Or(f.tls.Cert, a.getenv("STORAGECTL_TLS_CERT"), c.TLS.Cert),
		Key:        cmp.Or(f.tls.Key, a.getenv("STORAGECTL_TLS_KEY"), c.TLS.Key),
		ServerName: cmp.Or(f.tls.ServerName, a.getenv("STORAGECTL_TLS_SERVER_NAME"), c.TLS.ServerName),
	}
	if s.Timeout = f.timeout; s.Timeout == 0 {
		text := cmp.Or(a.getenv("STORAGECTL_TIMEOUT"), c.Timeout, "10s")
		var err error
		s.Timeout, err = time.ParseDuration(text)
		p.Check(err == nil, "the timeout %q is no duration; write 10s or 1m", text)
	}
	p.Check(s.Timeout >= 0, "the timeout %v is negative", s.Timeout)
	a.settings = s
	return p.Err("read settings", "")
}

// configPath returns the configuration file, and whether somebody named it (then it must be there).
func (a *app) configPath() (path string, explicit bool) {
	if path := cmp.Or(a.flags.config, a.getenv("STORAGECTL_CONFIG")); path != "" {
		return path, true
	}
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.getenv("HOME")
		if home == "" {
			return "", false
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "storagectl", "config.yaml"), false
}

// read fills c from the file at path. A file that nobody named may be missing.
func (c *file) read(path string, explicit bool) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !explicit {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return err
	}
	if len(text) > maxConfigBytes {
		return fmt.Errorf("%s is larger than %s", path, formatSize(maxConfigBytes))
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		text := strings.NewReplacer("yaml: unmarshal errors:\n  ", "", " not found in type main.file", " is not known; see 'storagectl help config'").Replace(err.Error())
		return fmt.Errorf("%s: %s", path, text)
	}
	return nil
}
