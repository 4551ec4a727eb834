package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	storage "github.com/storaged/storaged"
)

// invalid is the error of a command that no state would accept.
func invalid(op, subject, format string, args ...any) error {
	return storage.E(op, storage.KindInvalid, subject, fmt.Errorf(format, args...))
}

func (c InitCluster) check() error {
	const op = "create cluster"
	k := c.Cluster.withDefaults()
	switch {
	case k.ID.IsZero():
		return invalid(op, "", "the cluster id is zero")
	case k.Replicas < 1 || k.Replicas > MaxReplicasWanted || k.Replicas%2 == 0:
		return invalid(op, "", "%d replicas: use an odd number from 1 to %d, so that a majority is well defined",
			k.Replicas, MaxReplicasWanted)
	case k.Groups < 1 || k.Groups > MaxGroups:
		return invalid(op, "", "%d groups: use 1 to %d", k.Groups, MaxGroups)
	case k.HeartbeatTimeout < MinHeartbeatTimeout || k.HeartbeatTimeout > MaxHeartbeatTimeout:
		return invalid(op, "", "heartbeat timeout %v: use %v to %v", k.HeartbeatTimeout, MinHeartbeatTimeout,
			MaxHeartbeatTimeout)
	case k.Version < 1 || k.Version > Version:
		return storage.E(op, storage.KindUnsupported, "", fmt.Errorf("catalog version %d, this node knows 1 to %d", k.Version,
			Version))
	}
	return nil
}

func (c Cluster) withDefaults() Cluster {
	c.Version = cmp.Or(c.Version, 1) // whatever this build knows: logs from before there was a version are applied as they were
	c.Replicas = cmp.Or(c.Replicas, DefaultReplicas)
	c.Groups = cmp.Or(c.Groups, DefaultGroups)
	c.HeartbeatTimeout = cmp.Or(c.HeartbeatTimeout, DefaultHeartbeatTimeout)
	c.CreatedAt = c.CreatedAt.UTC()
	return c
}

func (c AddNode) check() error {
	return checkNode("add node", c.Name, c.Zone, c.Addrs, c.Stores)
}

func (c UpdateNode) check() error {
	if c.Name == "" {
		return invalid("update node", "node "+c.Node.String(), "the name is empty")
	}
	return checkNode("update node", c.Name, c.Zone, c.Addrs, c.Stores)
}

func checkNode(op, name, zone string, addrs storage.Addrs, stores []storage.Store) error {
	subject := "node " + name
	if err := checkLabel(op, "name", name); err != nil {
		return err
	}
	if err := checkLabel(op, "zone", zone); err != nil {
		return err
	}
	if addrs.Peer == "" {
		return invalid(op, subject, "it has no peer address; other nodes could not reach it")
	}
	for _, a := range []string{addrs.Peer, addrs.API, addrs.NBD, addrs.HTTP} {
		if err := checkAddr(a); err != nil {
			return invalid(op, subject, "address %q: %w", a, err)
		}
	}
	if len(stores) == 0 || len(stores) > MaxStoresPerNode {
		return invalid(op, subject, "it has %d stores; a node has 1 to %d", len(stores), MaxStoresPerNode)
	}
	seen := make(map[storage.StoreID]bool, len(stores))
	for _, s := range stores {
		switch {
		case s.ID.IsZero():
			return invalid(op, subject, "a store's id is zero")
		case seen[s.ID]:
			return invalid(op, subject, "store %s is named twice", s.ID)
		case s.CapacityBytes < 0:
			return invalid(op, subject, "store %s has a negative capacity", s.ID)
		}
		seen[s.ID] = true
	}
	return nil
}

// checkLabel accepts the names that hosts and racks have; empty is accepted.
func checkLabel(op, what, s string) error {
	if len(s) > MaxNameBytes {
		return invalid(op, what, "it has %d characters; use at most %d", len(s), MaxNameBytes)
	}
	return checkCharacters(op, what, s, "name", "-._")
}

// checkCharacters accepts letters and digits, and behind the first of them also what is listed. called is what s is called.
func checkCharacters(op, what, s, called, also string) error {
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune(also, c)) {
			return invalid(op, what+" "+strconv.Quote(s), "character %q is not allowed there; use letters and digits, and within the %s also %s",
				c, called, strings.Join(strings.Split(also, ""), " "))
		}
	}
	return nil
}

func checkAddr(a string) error {
	if a == "" {
		return nil
	}
	if len(a) > MaxAddrBytes {
		return fmt.Errorf("it has %d characters; use at most %d", len(a), MaxAddrBytes)
	}
	host, port, ok := splitHostPort(a)
	if !ok {
		return errors.New("write it as host:port, and an IPv6 address in brackets")
	}
	if host == "" {
		return errors.New("the host is missing; name the address that other machines can reach")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("the port must be 1 to 65535")
	}
	return nil
}

// splitHostPort is net.SplitHostPort without package net, which a pure package has no use for.
func splitHostPort(a string) (host, port string, ok bool) {
	at := strings.LastIndexByte(a, ':')
	if at < 0 {
		return "", "", false
	}
	host, port = a[:at], a[at+1:]
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		host, ok = strings.CutSuffix(inner, "]")
		// An IPv6 address has two colons at least, and no port of its own: [127.0.0.1:7001]:7001 is none.
		return host, port, ok && strings.Count(host, ":") >= 2
	}
	return host, port, !strings.ContainsAny(host, ":[] ")
}

func (c SetNodeState) check() error {
	switch c.State {
	case storage.NodeUp, storage.NodeSuspect, storage.NodeDown, storage.NodeRemoved:
		return nil
	}
	return invalid("set node state", "node "+c.Node.String(), "there is no state %q", string(c.State))
}

func (c SetNodeIntent) check() error {
	const op = "set node intent"
	subject := "node " + c.Node.String()
	switch c.Intent {
	case storage.IntentServe, storage.IntentDrain:
		if !c.Until.IsZero() {
			return invalid(op, subject, "only maintenance has an end")
		}
	case storage.IntentMaintenance:
		if c.Until.IsZero() {
			return invalid(op, subject, "maintenance needs an end")
		}
	default:
		return invalid(op, subject, "there is no intent %q", string(c.Intent))
	}
	return nil
}

func (c AddGroup) check() error {
	if c.Group == storage.CatalogGroup {
		return invalid("add group", "group 0", "group 0 is the catalog; data groups ascend from 1")
	}
	return nil
}

func (c SetGroupReady) check() error { return nil }
func (c PlanReplica) check() error   { return nil }
func (c RemoveReplica) check() error { return nil }

func (c SetReplica) check() error {
	if c.Stays && c.Role != storage.RoleVoter {
		return invalid("set replica", "replica "+c.Key.String(), "what stays is a voter, not a %s", string(c.Role))
	}
	switch c.Role {
	case storage.RoleLearner, storage.RoleVoter, storage.RoleLeaving:
		return nil
	}
	return invalid("set replica", "replica "+c.Key.String(), "role %q cannot be set", string(c.Role))
}

func (c CreateVolume) check() error {
	if err := storage.CheckVolumeName(c.Name); err != nil {
		return err
	}
	if len(c.RequestID) > MaxRequestIDBytes {
		return invalid("create volume", c.Name, "the request id has %d bytes; use at most %d", len(c.RequestID),
			MaxRequestIDBytes)
	}
	if err := c.Limits.Check(); err != nil {
		return err
	}
	if err := storage.CheckLabels(c.Labels); err != nil {
		return err
	}
	if err := checkPercent("create volume", c.Name, c.ProvisionPercent); err != nil {
		return err
	}
	if c.Groups < 0 || c.Groups > MaxVolumeGroups || bits.OnesCount(uint(c.Groups)) > 1 {
		return invalid("create volume", c.Name, "it cannot be striped over %d groups; use a power of two up to %d", c.Groups,
			MaxVolumeGroups)
	}
	return storage.CheckVolumeSize(c.SizeBytes)
}

func checkPercent(op, subject string, percent int) error {
	if percent < 0 || percent > MaxProvisionPercent {
		return invalid(op, subject, "a provisioning limit of %d %%; use 0 to %d", percent, MaxProvisionPercent)
	}
	return nil
}

func checkRef(op string, r storage.VolumeRef) error {
	if (r.ID == 0) == (r.Name == "") {
		return invalid(op, "", "name the volume by its id or by its name")
	}
	if r.Name != "" {
		return storage.CheckVolumeName(r.Name)
	}
	return nil
}

func (c ResizeVolume) check() error {
	if err := checkRef("resize volume", c.Volume); err != nil {
		return err
	}
	if err := checkPercent("resize volume", c.Volume.String(), c.ProvisionPercent); err != nil {
		return err
	}
	return storage.CheckVolumeSize(c.SizeBytes)
}

func (c SetVolumeLimits) check() error {
	if err := checkRef("set limits of volume", c.Volume); err != nil {
		return err
	}
	return c.Of(storage.VolumeLimits{}).Check()
}

func (c SetVolumeLabels) check() error {
	if err := checkRef("set labels of volume", c.Volume); err != nil {
		return err
	}
	return c.LabelChange.Check()
}

func (c RaiseVersion) check() error {
	if c.To < 1 || c.To > Version {
		return storage.E("upgrade", storage.KindUnsupported, "cluster", fmt.Errorf("there is no version %d, this node knows 1 to %d", c.To, Version))
	}
	return nil
}

func (c DeleteVolume) check() error { return checkRef("delete volume", c.Volume) }
func (c FinishDelete) check() error { return nil }
func (c CloseSession) check() error { return nil }

func (c OpenSession) check() error {
	const op = "open session"
	if err := checkRef(op, c.Volume); err != nil {
		return err
	}
	if (c.Gateway.Node == 0) == (c.Gateway.Host == "") {
		return invalid(op, c.Volume.String(), "a gateway has either a node or a host's name")
	}
	if c.Gateway.Host != "" {
		if err := checkHolderID(op, c.Gateway.Host); err != nil {
			return err
		}
	}
	if c.Attachment == 0 {
		return invalid(op, c.Volume.String(), "it names no attachment; attach the volume first")
	}
	if len(c.Machine) > MaxInstanceBytes || len(c.From) > MaxFromBytes {
		return invalid(op, c.Volume.String(), "its machine has %d bytes, its address %d; use at most %d and %d", len(c.Machine), len(c.From),
			MaxInstanceBytes, MaxFromBytes)
	}
	if c.Instance == "" || len(c.Instance) > MaxInstanceBytes {
		return invalid(op, c.Volume.String(), "the gateway's instance id has %d bytes; use 1 to %d", len(c.Instance),
			MaxInstanceBytes)
	}
	return nil
}

func (c ExpireSessions) check() error {
	if len(c.Sessions) > MaxSessionsPerCommand {
		return invalid("expire sessions", "", "%d sessions in one command; use at most %d", len(c.Sessions),
			MaxSessionsPerCommand)
	}
	return nil
}

func (c Attach) check() error {
	const op = "attach"
	if err := checkRef(op, c.Volume); err != nil {
		return err
	}
	switch {
	case !c.Access.Valid():
		return invalid(op, c.Volume.String(), "there is no access %q; use exclusive, shared or readers", string(c.Access))
	case c.Access == storage.AccessReaders && !c.ReadOnly:
		return invalid(op, c.Volume.String(), "readers only read; attach it read-only, or with another access")
	}
	return checkHolder(op, c.Holder)
}

func (c Detach) check() error {
	const op = "detach"
	if err := checkRef(op, c.Volume); err != nil {
		return err
	}
	if len(c.Machine) > MaxInstanceBytes {
		return invalid(op, c.Volume.String(), "its machine has %d bytes; use at most %d", len(c.Machine), MaxInstanceBytes)
	}
	if c.Holder == "" && c.Attachment != 0 {
		return nil
	}
	return checkHolderID(op, c.Holder)
}

func (c SetFenced) check() error { return nil }

func checkHolder(op string, h storage.Holder) error {
	if err := checkHolderID(op, h.ID); err != nil {
		return err
	}
	if len(h.Machine) > MaxInstanceBytes {
		return invalid(op, "holder "+h.ID, "its machine has %d bytes; use at most %d", len(h.Machine), MaxInstanceBytes)
	}
	subject, ofNode := "holder "+h.ID, strings.HasPrefix(h.ID, storage.NBDHolderPrefix)
	switch {
	case h.Kind != storage.HolderHost && h.Kind != storage.HolderNBD:
		return invalid(op, subject, "there is no kind %q of holders; use host or nbd", string(h.Kind))
	case (h.Kind == storage.HolderNBD) != ofNode:
		return invalid(op, subject, "ids that begin with %q, and no others, are those of nodes; choose another id", storage.NBDHolderPrefix)
	case (h.Kind == storage.HolderNBD) != (h.Node != 0):
		return invalid(op, subject, "a holder of kind nbd has a node, and no other has")
	}
	if h.Kind == storage.HolderHost {
		return checkLabel(op, "host", h.Host)
	}
	if len(h.Host) > MaxFromBytes || strings.ContainsFunc(h.Host, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) {
		return invalid(op, subject, "its client %q is no name that can be shown", h.Host) // an address, or a certificate's subject
	}
	return nil
}

// checkHolderID accepts the ids of holders.
func checkHolderID(op, id string) error {
	if id == "" || len(id) > storage.MaxHolderBytes {
		return invalid(op, "holder", "its id has %d characters; use 1 to %d", len(id), storage.MaxHolderBytes)
	}
	return checkCharacters(op, "holder", id, "id", "-._:/@")
}
