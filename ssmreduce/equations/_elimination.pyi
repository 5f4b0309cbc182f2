from ssmreduce._array_libraries import HostArray

def eliminate(
    T: HostArray,
    B: HostArray,
    U: HostArray,
    S: HostArray,
    M: HostArray,
    discrete: bool,
    /,
) -> bool: ...
def stein(T: HostArray, S: HostArray, X: HostArray, TX: HostArray, /) -> bool: ...
