// Package dockerplugin lets containers of Docker and Podman use volumes without an orchestrator: it is the volume plugin
// that `storaged docker-plugin` serves on a unix socket, one per host.
//
// Create makes a volume in the cluster, or adopts one that exists. Mount attaches it to this host through the host's
// gateway (package api/host), makes a file system on it if it is blank, and mounts it. Unmount of the last container undoes
// that, and the volume is free for the next host. Package hostfs does the mounting, with its promise: a device that is not
// blank, or cannot be read, is never formatted. Volumes are attached exclusively, unless they are shared read-only.
//
// What it keeps true: every step for a volume is written to the volume's record in the state directory before it is taken,
// and memory holds nothing but locks. A call that was interrupted, by an error or by the end of the process, is finished by
// repeating it. If nobody repeats it, the next plugin undoes it when it starts. Users are counted by the ids that Docker
// gives them, each once, and those of an earlier boot do not count. Only the host that made a volume deletes it: elsewhere
// Remove forgets it.
//
// A volume has two names: Docker's, and the cluster's, which follows from it (api.VolumeName) and is the same for most.
// Records, locks and mountpoints go by the cluster's. Docker is always answered with the name that it has asked by, and in
// lists with the one in the record.
//
// It holds no device, so it may be stopped and updated at any time. It does not authenticate: who may use the socket
// (root) may do everything, and requests are taken to be Docker's. It may be used concurrently; calls about one volume
// are carried out one after another.
package dockerplugin
