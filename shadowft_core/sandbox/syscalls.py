"""A seccomp filter: the calls of the kernel that a program has no use for are answered with an error.

The namespaces isolate a program. The filter takes away what would help it to attack the kernel or to use memory that
no limit counts: new processes, sockets, tracing, mounts, shared memory, keys, io_uring and BPF.
"""

import ctypes
import errno
import platform
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435  # from here on, numbers are the same on all architectures
CLONE_THREAD = 0x10000
SHARED = (  # open_tree ... fspick, pidfd, io_uring, close calls of 5.x
    424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442, 443, 447, 448, 457, 458,
)  # fmt: skip
DENIED = {
    "x86_64": (
        57, 58, 59, 322,  # fork, vfork, execve, execveat
        101, 310, 311, 312,  # ptrace, process_vm_readv, process_vm_writev, kcmp
        41, 29, 64, 68, 240, 319,  # socket, shmget, semget, msgget, mq_open, memfd_create
        165, 166, 155, 161, 308, 272,  # mount, umount2, pivot_root, chroot, setns, unshare
        248, 249, 250, 321, 298, 323, 303, 304,  # keys, bpf, perf_event_open, userfaultfd, file handles
        175, 176, 313, 246, 320, 169, 167, 168,  # kernel modules, kexec, reboot, swap
        170, 171, 172, 173, 163, 164, 227, 159, 305,  # host name, I/O ports, acct, clocks
        179, 180, 135, 153, 154, 103, 300, 279, 256, 237, 238, 212,  # quota, personality, vhangup, LDT, syslog, NUMA
    ),
    "aarch64": (
        221, 281, 117, 270, 271, 272,
        198, 194, 190, 186, 180, 279,
        40, 39, 41, 51, 268, 97,
        217, 218, 219, 280, 241, 282, 264, 265,
        105, 106, 273, 104, 294, 142, 224, 225,
        161, 162, 89, 170, 112, 171, 266,
        60, 42, 92, 58, 116, 262, 239, 238, 235, 237, 18,
    ),
}  # fmt: skip
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|*|K, BPF_RET|K
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
PR_SET_SECCOMP, FILTER = 22, 2


def supported() -> bool:
    return platform.machine() in ARCHITECTURES


def deny(libc: ctypes.CDLL) -> None:
    """Install the filter for this process and all that it starts. Needs no_new_privs. Raises OSError."""
    machine = platform.machine()
    refuse = (RETURN, 0, 0, ERROR | errno.EPERM)
    program = [
        (LOAD, 0, 0, 4),  # architecture
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),  # number of the call
    ]
    if machine == "x86_64":
        program += [(AT_LEAST, 0, 1, 0x40000000), refuse]  # the x32 numbers
    program += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ERROR | errno.ENOSYS)]  # its flags are out of a filter's reach
    for number in (*DENIED[machine], *SHARED):
        program += [(EQUAL, 0, 1, number), refuse]
    program += [
        (EQUAL, 1, 0, CLONE[machine]),
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, 16),  # first argument: the flags
        (ANY_BIT, 1, 0, CLONE_THREAD),
        refuse,
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))

    class Fprog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    fprog = Fprog(len(program), ctypes.addressof(code))
    if libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(FILTER), ctypes.byref(fprog), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
