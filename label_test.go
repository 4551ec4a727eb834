package storage

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
)

func TestCheckLabels(t *testing.T) {
	type labels = map[string]string
	many, long := labels{}, labels{}
	for i := range MaxLabels {
		many[fmt.Sprint("k", i)] = ""
	}
	for i := range 12 {
		long[fmt.Sprintf("%s/%s%02d", strings.Repeat("a.", 126)+"a", strings.Repeat("b", 61), i)] = strings.Repeat("c", 63)
	}
	for _, good := range []labels{nil, {"a": ""}, {"a": "0"}, {"Env_1.x-y": "Prod_1.x-y"}, many,
		{"example.com/team": "shop"}, {strings.Repeat("a.", 126) + "a/" + strings.Repeat("b", 63): strings.Repeat("c", 63)}} {
		if err := CheckLabels(good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	more := maps.Clone(many)
	more["more"] = ""
	for _, c := range []struct {
		labels
		want string
	}{
		{labels{"": "a"}, `label "": its name cannot`}, {labels{"-a": ""}, `label "-a"`}, {labels{"a_": ""}, `label "a_"`},
		{labels{strings.Repeat("a", 64): ""}, "1 to 63 letters"}, {labels{"a b": ""}, `label "a b"`}, {labels{"ä": ""}, `label "ä"`},
		{labels{"a": "-"}, `label "a" cannot have the value "-"`}, {labels{"a": strings.Repeat("b", 64)}, "1 to 63 letters"}, {labels{"a": "b/c"}, `"b/c"`},
		{labels{"/a": ""}, "DNS name"}, {labels{"A/a": ""}, "DNS name"}, {labels{"a..b/a": ""}, "DNS name"}, {labels{"a/b/c": ""}, `its name cannot`},
		{labels{"a/": ""}, `label "a/": its name`}, {labels{strings.Repeat("a.", 126) + "aa/b": ""}, "DNS name"},
		{more, "65 labels of 186 bytes; use at most 64 of 4096"}, {long, "12 labels of 4560 bytes"},
	} {
		if err := CheckLabels(c.labels); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200v: %v; want %q", c.labels, err, c.want)
		}
	}
}

func TestLabelChange(t *testing.T) {
	type labels = map[string]string
	old := labels{"a": "1", "b": "2"}
	for _, c := range []struct {
		change LabelChange
		want   labels
	}{
		{LabelChange{}, old},
		{LabelChange{Set: labels{"a": "3", "c": ""}, Remove: []string{"b", "d"}}, labels{"a": "3", "c": ""}},
		{LabelChange{Remove: []string{"a", "b"}}, nil},
	} {
		if got := c.change.Of(old); c.change.Check() != nil || !maps.Equal(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%+v makes %v, %v", c.change, got, c.change.Check())
		}
	}
	if got := (LabelChange{}).Of(nil); got != nil || old["a"] != "1" || len(old) != 2 {
		t.Errorf("nothing becomes %v, and what was is %v", got, old)
	}
	for _, bad := range []LabelChange{{Set: labels{"a": "-"}}, {Remove: []string{"-"}}, {Set: labels{"a": ""}, Remove: []string{"a"}},
		{Remove: make([]string, MaxLabels+1)}} {
		if err := bad.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestClonesShareNoLabels(t *testing.T) {
	v := Volume{Labels: map[string]string{"a": "1"}}
	v.Clone().Labels["a"] = "2"
	if v.Labels["a"] != "1" {
		t.Errorf("a change of the clone made %v", v.Labels)
	}
}

func TestLabelSelector(t *testing.T) {
	has := map[string]string{"a": "1", "b": ""}
	for _, c := range []struct {
		selector LabelSelector
		want     bool
	}{
		{nil, true}, {LabelSelector{"a"}, true}, {LabelSelector{"a=1", "b"}, true}, {LabelSelector{"b="}, true},
		{LabelSelector{"a="}, false}, {LabelSelector{"a=1", "c"}, false}, {LabelSelector{"b=1"}, false},
	} {
		if got := c.selector.Matches(has); got != c.want || c.selector.Check() != nil {
			t.Errorf("%q: %v, %v", c.selector, got, c.selector.Check())
		}
	}
	for _, bad := range []LabelSelector{{""}, {"=1"}, {"a=b=c"}, make(LabelSelector, MaxLabels+1)} {
		if err := bad.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseLabels(t *testing.T) {
	got, err := ParseLabels([]string{"a=1", "b=", "a=1"})
	if err != nil || !maps.Equal(got, map[string]string{"a": "1", "b": ""}) {
		t.Errorf("got %v, %v", got, err)
	}
	for text, want := range map[string]string{"a": "KEY=VALUE", "a=1=2": `"1=2"`, "b=2 b=3": "given twice"} {
		if _, err := ParseLabels(strings.Fields(text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}
