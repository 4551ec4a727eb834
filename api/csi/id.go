package csi

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// requestID makes a repeated CreateVolume the same request, and tells a volume that the orchestrator asked for from one
// that happens to have its name.
func requestID(name string) string { return "csi-" + api.Hashed(name, 40) }

// volumeID is the volume's CSI id: NAME.ID.MARK. The name finds the volume, the id tells it from a namesake made later, and the
// beginning of the cluster's id from a namesake in another cluster; without a cluster it is NAME.ID.
func volumeID(v storage.VolumeRef, cluster storage.ClusterID) string {
	switch {
	case v.ID == 0:
		return v.Name
	case cluster.IsZero():
		return v.Name + "." + v.ID.String()
	}
	return v.Name + "." + v.ID.String() + "." + cluster.String()[:api.ClusterMarkBytes]
}

// forVolume returns a context whose requests are for the cluster of a volume's CSI id only, if the id says which.
func forVolume(ctx context.Context, id string) context.Context {
	if parts := strings.Split(id, "."); len(parts) == 3 {
		return api.WithCluster(ctx, parts[2])
	}
	return ctx
}

// parseVolumeID is the inverse of volumeID; NAME alone, as people write it for volumes that they made themselves, is an id
// too, and so is NAME.ID, which all were once. The second result is false for what cannot be an id of ours.
func parseVolumeID(s string) (storage.VolumeRef, bool) {
	s, mark, marked := cutMark(s)
	if marked && (len(mark) != api.ClusterMarkBytes || strings.Trim(mark, "0123456789abcdef") != "") {
		return storage.VolumeRef{}, false
	}
	name, number, numbered := strings.Cut(s, ".")
	ref := storage.VolumeRef{Name: name}
	if numbered {
		id, err := strconv.ParseUint(number, 10, 64)
		if err != nil || id == 0 || number[0] == '0' || number[0] == '+' {
			return storage.VolumeRef{}, false
		}
		ref.ID = storage.VolumeID(id)
	}
	return ref, storage.CheckVolumeName(name) == nil
}

// volumeRef is parseVolumeID for a call that needs the volume: INVALID_ARGUMENT without an id, NOT_FOUND for one that is not ours.
func volumeRef(id string) (storage.VolumeRef, error) {
	if id == "" {
		return storage.VolumeRef{}, invalid("volume_id is missing")
	}
	ref, ok := parseVolumeID(id)
	if !ok {
		return ref, noVolume(id)
	}
	return ref, nil
}

// cutMark splits NAME.ID.MARK into NAME.ID and MARK.
func cutMark(s string) (rest, mark string, ok bool) {
	if strings.Count(s, ".") != 2 {
		return s, "", false
	}
	at := strings.LastIndexByte(s, '.')
	return s[:at], s[at+1:], true
}

// nodePrefix marks a CSI node id as ours: the catalog keeps no list of hosts, and an id that was never given out must be
// told from one that was.
const nodePrefix = "host:"

// NodeID is the CSI node id of a host.
func NodeID(hostID string) string { return nodePrefix + hostID }

// parseNodeID is the inverse of NodeID. The second result is false for what cannot be an id of ours.
func parseNodeID(s string) (hostID string, ok bool) {
	hostID, ok = strings.CutPrefix(s, nodePrefix)
	return hostID, ok && CheckHostID(hostID) == nil
}

// CheckHostID returns an error of KindInvalid for what cannot be a host's id.
func CheckHostID(id string) error {
	fail := func(why string) error {
		return storage.E("check host id", storage.KindInvalid, strconv.Quote(id), fmt.Errorf("%s; use 1 to %d letters, digits and "+
			"- . _ : / @, beginning with a letter or digit", why, storage.MaxHolderBytes))
	}
	if id == "" || len(id) > storage.MaxHolderBytes {
		return fail(fmt.Sprintf("it has %d characters", len(id)))
	}
	for i, c := range id {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("-._:/@", c)) {
			return fail(fmt.Sprintf("character %q is not allowed there", c))
		}
	}
	return nil
}

// pageToken continues a list after the volume of that name. It carries a mark, so that what was never given out is
// refused: any name alone would do as a token.
func pageToken(name string) string { return "after." + name }

// parsePageToken is the inverse of pageToken; an empty token begins.
func parsePageToken(token string) (after string, ok bool) {
	if token == "" {
		return "", true
	}
	after, ok = strings.CutPrefix(token, "after.")
	return after, ok && storage.CheckVolumeName(after) == nil
}
