package csi

import (
	"maps"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

func TestParseLimits(t *testing.T) {
	type m = map[string]string
	for _, c := range []struct {
		in   m
		want storage.VolumeLimits
	}{
		{m{"max-iops": "500"}, storage.VolumeLimits{MaxIOPS: 500}},
		{m{"max-bandwidth": "1048576"}, storage.VolumeLimits{MaxBytesPerSecond: 1 << 20}},
		{m{"max-bandwidth": "100Mi", "max-iops": "0"}, storage.VolumeLimits{MaxBytesPerSecond: 100 << 20}},
		{m{"max-bandwidth": "1024KiB"}, storage.VolumeLimits{MaxBytesPerSecond: 1 << 20}},
		{m{"max-bandwidth": "1Ti"}, storage.VolumeLimits{MaxBytesPerSecond: 1 << 40}},
	} {
		if got, err := parseLimits(c.in); err != nil || *got != c.want {
			t.Errorf("%v: %+v, %v", c.in, got, err)
		}
	}
	if got, err := parseLimits(nil); got != nil || err != nil {
		t.Errorf("nothing: %+v, %v", got, err)
	}
	for _, bad := range []m{{"maxIops": "500"}, {"max-iops": "-1"}, {"max-iops": "1Mi"}, {"max-iops": "5"}, {"max-iops": ""},
		{"max-bandwidth": "Mi"}, {"max-bandwidth": "1.5Gi"}, {"max-bandwidth": "-4Mi"}, {"max-bandwidth": "4B"}, {"max-bandwidth": "4M"},
		{"max-bandwidth": "10000000Ti"}, {"max-bandwidth": "9223372036854775807Ki"}, {"max-bandwidth": "1Ki"}} {
		if got, err := parseLimits(bad); err == nil {
			t.Errorf("%v was accepted: %+v", bad, got)
		}
	}
}

func TestParseLabels(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"env=prod":             {"env": "prod"},
		"env=prod,team=":       {"env": "prod", "team": ""},
		"example.com/a=1,env=": {"example.com/a": "1", "env": ""},
	} {
		if p, err := parseParameters(map[string]string{"labels": text}); err != nil || !maps.Equal(p.labels, want) {
			t.Errorf("%q: %v, %v", text, p.labels, err)
		}
	}
	for _, bad := range []string{"", "env", "env=prod,", "env=a,env=b", "env=a b", "-=a"} {
		p, err := parseParameters(map[string]string{"labels": bad})
		if err == nil || !strings.Contains(err.Error(), "parameter labels") {
			t.Errorf("%q: %v, %v", bad, p.labels, err)
		}
	}
}
