package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/storaged/storaged/api/client"
)

// For every setting: the flag wins over the variable, that over the file, that over the default.
func TestPrecedence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := "endpoints: [file]\nnbd: file\nnbd_tls: true\ntimeout: 3s\ntls: {enabled: true, ca: file, cert: file, key: file, server_name: file}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	texts := []struct {
		flag, variable string
		of             func(settings) string
		byDefault      string
	}{
		{"--endpoint", "STORAGECTL_ENDPOINTS", func(s settings) string { return s.Endpoints[0] }, "127.0.0.1:" + client.DefaultPort},
		{"--nbd", "STORAGECTL_NBD", func(s settings) string { return s.NBD }, ""},
		{"--tls-ca", "STORAGECTL_TLS_CA", func(s settings) string { return s.TLS.CA }, ""},
		{"--tls-cert", "STORAGECTL_TLS_CERT", func(s settings) string { return s.TLS.Cert }, ""},
		{"--tls-key", "STORAGECTL_TLS_KEY", func(s settings) string { return s.TLS.Key }, ""},
		{"--tls-server-name", "STORAGECTL_TLS_SERVER_NAME", func(s settings) string { return s.TLS.ServerName }, ""},
	}
	read := func(env map[string]string, args ...string) settings {
		t.Helper()
		var out bytes.Buffer
		r := newRig(t)
		r.env = env
		a := r.app(&out, &out)
		root := newRoot(a)
		if err := root.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		if err := a.resolve(); err != nil {
			t.Fatal(err)
		}
		return a.settings
	}
	for _, c := range texts {
		withFile := map[string]string{"STORAGECTL_CONFIG": path}
		withBoth := map[string]string{"STORAGECTL_CONFIG": path, c.variable: "variable"}
		for want, got := range map[string]settings{
			c.byDefault: read(nil), "file": read(withFile), "variable": read(withBoth), "flag": read(withBoth, c.flag, "flag"),
		} {
			if c.of(got) != want {
				t.Errorf("%s: %q, want %q", c.flag, c.of(got), want)
			}
		}
	}
	for want, got := range map[time.Duration]settings{
		10 * time.Second: read(nil), 3 * time.Second: read(map[string]string{"STORAGECTL_CONFIG": path}),
		4 * time.Second: read(map[string]string{"STORAGECTL_CONFIG": path, "STORAGECTL_TIMEOUT": "4s"}),
		5 * time.Second: read(map[string]string{"STORAGECTL_CONFIG": path, "STORAGECTL_TIMEOUT": "4s"}, "--timeout", "5s"),
	} {
		if got.Timeout != want {
			t.Errorf("timeout %v, want %v", got.Timeout, want)
		}
	}
	if s := read(map[string]string{"STORAGECTL_CONFIG": path}); !s.TLS.Enabled || !s.NBDTLS {
		t.Errorf("TLS of the file: %+v", s)
	}
	if s := read(map[string]string{"STORAGECTL_CONFIG": path, "STORAGECTL_NBD_TLS": "0"}); s.NBDTLS {
		t.Error("a variable does not turn the file's nbd_tls off")
	}
}

// Without --config and STORAGECTL_CONFIG the file is where XDG says, and may be missing.
func TestWhereTheFileIs(t *testing.T) {
	home := t.TempDir()
	write := func(path, endpoint string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("endpoints: ["+endpoint+"]"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(env map[string]string, config string) []string {
		t.Helper()
		r := newRig(t)
		r.env = env
		var out bytes.Buffer
		a := r.app(&out, &out)
		a.flags.config = config
		if err := a.resolve(); err != nil {
			t.Fatal(err)
		}
		return a.settings.Endpoints
	}
	env := map[string]string{"HOME": home}
	want := func(endpoint, config string) {
		t.Helper()
		if got := read(env, config); !slices.Equal(got, []string{endpoint}) {
			t.Errorf("endpoints %v, want %s", got, endpoint)
		}
	}
	want("127.0.0.1:7000", "")
	write(filepath.Join(home, ".config", "storagectl", "config.yaml"), "home")
	want("home", "")
	env["XDG_CONFIG_HOME"] = filepath.Join(home, "xdg")
	want("127.0.0.1:7000", "")
	write(filepath.Join(home, "xdg", "storagectl", "config.yaml"), "xdg")
	want("xdg", "")
	write(filepath.Join(home, "named.yaml"), "variable")
	env["STORAGECTL_CONFIG"] = filepath.Join(home, "named.yaml")
	want("variable", "")
	write(filepath.Join(home, "flag.yaml"), "flag")
	want("flag", filepath.Join(home, "flag.yaml"))
}

func TestFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, make([]byte, maxConfigBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&file{}).read(path, true); err == nil {
		t.Error("a huge file was read")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&file{}).read(path, true); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}
