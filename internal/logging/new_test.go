package logging

import (
	"bytes"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestNew: the flags decide what is written and how, and a bad one is named.
func TestNew(t *testing.T) {
	var out bytes.Buffer
	l, err := New("warn", "json", &out)
	if err != nil {
		t.Fatal(err)
	}
	l.Info("left out")
	l.Warn("written", "volume", "web")
	if got := out.String(); strings.Contains(got, "left out") || !strings.Contains(got, `"volume":"web"`) {
		t.Errorf("written: %s", got)
	}
	for flag, c := range map[string][2]string{"--log-level": {"loud", "text"}, "--log-format": {"info", "xml"}} {
		if _, err := New(c[0], c[1], &out); storage.KindOf(err) != storage.KindInvalid || !strings.Contains(err.Error(), flag) {
			t.Errorf("level %q, format %q: %v", c[0], c[1], err)
		}
	}
}
