package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
	CA        string
	Cert      string
	Key       string
	Name      string
	TLS       bool
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
	endpoints                 []string
	nbd, config, cluster      string
	ca, cert, key, serverName string
	tls, nbdTLS               bool
	timeout                   time.Duration
	output                    string
}

func (f *globalFlags) register(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringSliceVar(&f.endpoints, "endpoint", nil, "API of a node, `HOST[:PORT]`; repeat it or separate by commas to name several ($STORAGECTL_ENDPOINTS)")
	flags.StringVar(&f.cluster, "cluster", "", "`ID` of the cluster that is meant: endpoints of another one are asked for nothing ($STORAGECTL_CLUSTER)")
	flags.StringVar(&f.nbd, "nbd", "", "NBD server to use, `ADDRESS` is HOST[:PORT] or unix:PATH; otherwise the cluster is asked ($STORAGECTL_NBD)")
	flags.BoolVar(&f.nbdTLS, "nbd-tls", false, "speak TLS to the NBD server ($STORAGECTL_NBD_TLS)")
	flags.BoolVar(&f.tls, "tls", false, "speak TLS to the API; implied by the flags for certificates ($STORAGECTL_TLS)")
	flags.StringVar(&f.ca, "tls-ca", "", "PEM `FILE` of the authorities that sign the nodes' certificates ($STORAGECTL_TLS_CA)")
	flags.StringVar(&f.cert, "tls-cert", "", "PEM `FILE` of the own certificate ($STORAGECTL_TLS_CERT)")
	flags.StringVar(&f.key, "tls-key", "", "PEM `FILE` of the own key ($STORAGECTL_TLS_KEY)")
	flags.StringVar(&f.serverName, "tls-server-name", "", "`NAME` in the nodes' certificates, when it is not the endpoint's ($STORAGECTL_TLS_SERVER_NAME)")
	flags.DurationVar(&f.timeout, "timeout", 0, "patience for one request to the cluster (default 10s; $STORAGECTL_TIMEOUT)")
	flags.StringVar(&f.config, "config", "", "configuration `FILE` (default ~/.config/storagectl/config.yaml; $STORAGECTL_CONFIG)")
	flags.StringVarP(&f.output, "output", "o", "table", "`FORM`: table, wide, json or yaml")
}

// resolve fills a.settings. Problems of all sources are reported at once.
func (a *app) resolve() error {
	var c file
	path, explicit := a.configPath()
	problems := []error{c.read(path, explicit)}
	s := settings{from: "the default"}
	pick := func(flag, variable, inFile string) string {
		if flag != "" {
			return flag
		}
		if v := a.getenv(variable); v != "" {
			return v
		}
		return inFile
	}
	yes := func(flag bool, variable string, inFile bool) bool {
		v := a.getenv(variable)
		switch v {
		case "", "0", "false", "1", "true":
		default:
			problems = append(problems, fmt.Errorf("%s is %q; write 1 or 0", variable, v))
		}
		return flag || v == "1" || v == "true" || v == "" && inFile
	}
	switch variable := a.getenv("STORAGECTL_ENDPOINTS"); {
	case len(a.flags.endpoints) > 0:
		s.Endpoints, s.from = a.flags.endpoints, "--endpoint"
	case variable != "":
		s.Endpoints, s.from = strings.Split(variable, ","), "STORAGECTL_ENDPOINTS"
	case len(c.Endpoints) > 0:
		s.Endpoints, s.from = c.Endpoints, path
	default:
		s.Endpoints = []string{"127.0.0.1:" + client.DefaultPort}
	}
	for _, e := range s.Endpoints {
		if _, err := client.ParseEndpoint(e); err != nil {
			problems = append(problems, fmt.Errorf("from %s: %w", s.from, err))
		}
	}
	if text := pick(a.flags.cluster, "STORAGECTL_CLUSTER", c.Cluster); text != "" {
		var err error
		if s.Cluster, err = storage.ParseClusterID(text); err != nil {
			problems = append(problems, fmt.Errorf("the cluster %q is no id; storagectl status shows it: %w", text, err))
		}
	}
	s.NBD = pick(a.flags.nbd, "STORAGECTL_NBD", c.NBD)
	s.NBDTLS = yes(a.flags.nbdTLS, "STORAGECTL_NBD_TLS", c.NBDTLS)
	s.CA = pick(a.flags.ca, "STORAGECTL_TLS_CA", c.TLS.CA)
	s.Cert = pick(a.flags.cert, "STORAGECTL_TLS_CERT", c.TLS.Cert)
	s.Key = pick(a.flags.key, "STORAGECTL_TLS_KEY", c.TLS.Key)
	s.Name = pick(a.flags.serverName, "STORAGECTL_TLS_SERVER_NAME", c.TLS.ServerName)
	s.TLS = yes(a.flags.tls, "STORAGECTL_TLS", c.TLS.Enabled) || s.CA != "" || s.Cert != "" || s.Key != ""
	if s.Timeout = a.flags.timeout; s.Timeout == 0 {
		s.Timeout = 10 * time.Second
		if text := pick("", "STORAGECTL_TIMEOUT", c.Timeout); text != "" {
			var err error
			if s.Timeout, err = time.ParseDuration(text); err != nil {
				problems = append(problems, fmt.Errorf("the timeout %q is no duration; write 10s or 1m", text))
			}
		}
	}
	if s.Timeout < 0 {
		problems = append(problems, fmt.Errorf("the timeout %v is negative", s.Timeout))
	}
	if err := errors.Join(problems...); err != nil {
		return storage.E("read settings", storage.KindInvalid, "", err)
	}
	a.settings = s
	return nil
}

// configPath returns the configuration file, and whether somebody named it (then it must be there).
func (a *app) configPath() (path string, explicit bool) {
	if a.flags.config != "" {
		return a.flags.config, true
	}
	if path := a.getenv("STORAGECTL_CONFIG"); path != "" {
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

// tls returns how to speak to nodes: nil for plain text.
func (s *settings) tls() (*tls.Config, error) {
	return tlsfiles.Client{Enabled: s.TLS, CA: s.CA, Cert: s.Cert, Key: s.Key, ServerName: s.Name}.Config()
}
