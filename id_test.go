package storage

import (
	"bytes"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
)

// TestIDsInLogs: a log of JSON shows identifiers as all else does, and not as a list of bytes.
func TestIDsInLogs(t *testing.T) {
	const id = "9cf4cada-719a-caf7-f117-4157bd8bed2d"
	cluster, err := ParseClusterID(id)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("serving", "cluster", cluster, "store", StoreID(cluster))
	if n := strings.Count(out.String(), `"`+id+`"`); n != 2 {
		t.Errorf("the log shows %s", out.String())
	}
}

// TestVolumeNames: a refused name is shown as it was typed, with the character, and not a byte of one, that is in the way.
func TestVolumeNames(t *testing.T) {
	for _, name := range []string{"a", "0", "pvc-0001", strings.Repeat("a", MaxVolumeNameBytes)} {
		if err := CheckVolumeName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, want := range map[string]string{"": "empty", "ä": `'ä'`, "web data": `' '`, "Web": `'W'`, "a/b": `'/'`, "a\x00b": `'\x00'`,
		"-a": "hyphen", "a-": "hyphen", strings.Repeat("a", MaxVolumeNameBytes+1): "characters", "数据": `'数'`} {
		if err := CheckVolumeName(name); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), strconv.Quote(name)) {
			t.Errorf("%q: %v, want it to say %s", name, err, want)
		}
	}
}
